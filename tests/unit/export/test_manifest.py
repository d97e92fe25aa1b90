import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gkd_core.errors import GkdError
from gkd_core.export import manifest as module
from gkd_core.export.manifest import (
    build_manifest,
    code_sha256,
    dropped_file,
    lineage,
    model_entry,
    read_manifest,
    write_manifest,
)
from gkd_core.files import file_digest

TRAINING = {"data_sha256": "d" * 64, "teacher_digest": "t" * 64, "config_digest": "c" * 64}


def example(folder: Path) -> dict[str, object]:
    (folder / "model.onnx").write_bytes(b"weights")
    return build_manifest(
        folder / "model.onnx",
        input="uint8_nhwc",
        input_shape=(8, 8, 1),
        opset=18,
        classes=("zero", "one"),
        lineage=lineage(TRAINING, student_digest="s" * 64, export_digest="e" * 64),
        method="gompertz",
        network="resnet8",
        preprocessing={"mean": [0.3], "std": [0.2]},
        parity={"max_abs": 1e-6, "batch_sizes": [1, 2], "images": 3},
    )


def test_a_manifest_is_read_back_and_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    manifest = example(tmp_path)
    write_manifest(tmp_path, manifest)
    first = (tmp_path / "manifest.json").read_bytes()
    write_manifest(tmp_path, example(tmp_path))
    assert (tmp_path / "manifest.json").read_bytes() == first
    assert read_manifest(tmp_path) == manifest == json.loads(first)
    assert manifest["model"] == {
        "file": "model.onnx",
        "sha256": file_digest(tmp_path / "model.onnx"),
        "size_bytes": 7,
        "opset": 18,
        "input": "uint8_nhwc",
        "input_name": "image",
        "input_shape": [8, 8, 1],
        "output": "logits",
    }
    assert {name: manifest[name] for name in ("data_sha256", "teacher_digest", "student_digest")} == {
        "data_sha256": "d" * 64,
        "teacher_digest": "t" * 64,
        "student_digest": "s" * 64,
    }


def test_the_configuration_digest_follows_both_training_and_export() -> None:
    digests = {
        lineage(TRAINING | {"config_digest": config}, student_digest="s", export_digest=export)["config_digest"]
        for config in "ab"
        for export in "ab"
    }
    assert len(digests) == 4


def test_a_changed_model_is_noticed(tmp_path: Path) -> None:
    write_manifest(tmp_path, example(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"weightS")
    with pytest.raises(GkdError, match=r"model\.onnx is not the file its manifest describes \(sha256 differs\)"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json: run `gkd export`, which writes it"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is not readable JSON"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 99}'), "is not a manifest of format 1"),
        (lambda folder: (folder / "model.onnx").unlink(), "has no model.onnx: run `gkd export` again"),
    ],
)
def test_what_is_missing_or_damaged_is_one_sentence(tmp_path: Path, damage: object, sentence: str) -> None:
    write_manifest(tmp_path, example(tmp_path))
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(GkdError, match=sentence):
        read_manifest(tmp_path)


def package(root: Path, name: str) -> Path:
    folder = root / name
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "inner" / "page.html.j2").write_text("<p>")
    (folder / "inner" / "notes.md").write_text("not code")
    return folder


def test_the_code_digest_is_of_sources_by_name_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "gkd_test_sources"
    monkeypatch.setattr(module, "PACKAGES", (name, "gkd_test_not_installed"))
    folder = package(tmp_path / "here", name)
    monkeypatch.syspath_prepend(tmp_path / "here")
    first = code_sha256()

    (folder / "inner" / "notes.md").write_text("still not code")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"\0")
    assert code_sha256() == first

    (folder / "inner" / "page.html.j2").write_text("<p><b>")
    changed = code_sha256()
    assert changed != first
    (folder / "inner" / "page.html.j2").rename(folder / "inner" / "leaf.html.j2")
    assert code_sha256() not in (first, changed)

    shutil.rmtree(folder)
    package(tmp_path / "there", name)
    monkeypatch.syspath_prepend(tmp_path / "there")
    assert code_sha256() == first


def test_the_real_packages_are_found_from_any_folder(tmp_path: Path) -> None:
    # What reads and serves a finished model comes without torch.
    program = (
        "import sys, gkd_core.export.session; from gkd_core.export.manifest import code_sha256; "
        "print(code_sha256(), 'torch' in sys.modules)"
    )
    paths = {"PYTHONPATH": str(Path.cwd()), "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=paths,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.split() == [code_sha256(), "False"]


def test_a_precision_that_was_not_kept_is_refused_with_its_reason():
    manifest = {"model": {"file": "model.onnx"}, "fp16": dropped_file("export.fp16 is false")}
    assert model_entry(manifest, "fp32", "the folder deploy") == {"file": "model.onnx"}
    with pytest.raises(GkdError, match=r"the folder deploy has no fp16 model: export\.fp16 is false; take fp32"):
        model_entry(manifest, "fp16", "the folder deploy")
