"""The notebooks and the examples in docs/library.md run as they stand there."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run(path: Path, folder: Path) -> list[str]:
    """What the code cells of a notebook show, run in an empty folder."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return [str(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(autouse=True)
def _sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_output(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_us_before_torch_which_is_told_but_once_how_its_threads_wait(path: Path) -> None:
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    imported = re.findall(r"^(?:import|from) (gkd_core|torch)", code, flags=re.MULTILINE)
    assert imported[0] == "gkd_core"


@pytest.mark.slow
def test_the_quickstart_distils_and_exports_and_writes_nothing(tmp_path: Path) -> None:
    *_, plotted, measured, exported = run(ROOT / "notebooks" / "quickstart.ipynb", tmp_path)
    assert "image/png" in plotted
    assert measured.count("on 360 images") == 3
    accuracies = [float(found) for found in re.findall(r"top-1 +([\d.]+)%", measured)]
    assert min(accuracies) > 80
    assert re.search(r"[\d,]+ bytes", exported)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_loop_of_one_s_own_learns_from_the_teacher(tmp_path: Path) -> None:
    *_, measured = run(ROOT / "notebooks" / "own-loop.ipynb", tmp_path)
    accuracy = re.search(r"top-1 +([\d.]+)%", measured)
    assert accuracy is not None
    assert float(accuracy[1]) > 30


@pytest.mark.slow
def test_the_examples_of_the_page_on_the_library_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torchvision.models import resnet18

    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    for name, grey in (("cat", 40), ("dog", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (70, 80), (grey + number, grey, number)).save(tmp_path / "photos" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {
        "my_module": resnet18(num_classes=2),
        "images": torch.rand(4, 3, 64, 64),
        "labels": torch.tensor([0, 1, 0, 1]),
    }
    exec(re.sub(r"epochs=\d+", "epochs=1", first), known)
    assert (tmp_path / "deploy" / "manifest.json").is_file()
    exec(second, known)
    assert sorted(known["terms"]) == ["ce", "gradient", "kd", "wasserstein"]  # type: ignore[call-overload]
