"""An imported teacher: matched by class names, the same wherever it lay, refused in one sentence if it does not fit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from components import teacher as step
from gkd_core.config import parse_params
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.files import folder_digest


def importing(source, **teacher):
    return parse_params({"teacher": {"name": "resnet8", "source": str(source), **teacher}})


def test_the_same_network_is_the_same_teacher_wherever_it_lay(tmp_path, digits, teacher):
    shutil.copytree(teacher, tmp_path / "elsewhere")
    digests = []
    for i, source in enumerate((teacher, tmp_path / "elsewhere")):
        out = tmp_path / f"teacher-{i}"
        step.run(data=digits, out=out, work=tmp_path / "work", params=importing(source))
        digests.append(folder_digest(out))
    assert digests[0] == digests[1]
    assert json.loads((tmp_path / "teacher-1" / "resnet8" / "run.json").read_text())["source"].endswith("elsewhere")


def test_a_state_dict_with_classes_in_another_order_answers_in_the_datas(tmp_path, digits, teacher):
    weights = load_file(teacher / "resnet8" / "model.safetensors")
    order = [7, 3, 0, 1, 2, 4, 5, 6, 8, 9]
    for key in ("fc.weight", "fc.bias"):
        weights[key] = weights[key][order]
    torch.save(weights, tmp_path / "teacher.pt")
    params = importing(tmp_path / "teacher.pt", classes=[str(i) for i in order])
    step.run(data=digits, out=tmp_path / "imported", work=tmp_path / "work", params=params)

    data = PreparedData.open(digits)
    images = torch.from_numpy(data.validation.images[:32].copy()).permute(0, 3, 1, 2) / 255
    (ours,), (imported,) = (step.open_teachers(f, data.info.classes) for f in (teacher, tmp_path / "imported"))
    torch.testing.assert_close(imported.eval()(images).logits, ours.eval()(images).logits)


@pytest.mark.parametrize(
    ("classes", "part"),
    [([f"c{i}" for i in range(10)], "does not know '0'"), (["0", "1"], "classes")],
)
def test_classes_that_do_not_match_are_one_sentence(tmp_path, digits, teacher, classes, part):
    shutil.copy(teacher / "resnet8" / "model.safetensors", tmp_path / "teacher.safetensors")
    params = importing(tmp_path / "teacher.safetensors", classes=classes)
    with pytest.raises(GkdError, match=part) as caught:
        step.run(data=digits, out=tmp_path / "imported", work=tmp_path / "work", params=params)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "imported").exists()
