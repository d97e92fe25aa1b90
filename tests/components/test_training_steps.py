"""What holds for every training step: the test split stays shut, the seed decides everything, changed data is seen."""

import shutil

import numpy as np
import pytest
import torch

from components import distill
from components import teacher as teacher_step
from gkd_core.config import Params, parse_params
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.files import file_digest, folder_digest

TRAIN = {"epochs": 2, "device": "cpu", "select": "best"}


def test_no_training_step_opens_the_test_split(tmp_path, few_digits, monkeypatch):
    opened = []
    split = PreparedData.split
    monkeypatch.setattr(PreparedData, "check", lambda self: None)  # which compares the bytes of all three
    monkeypatch.setattr(PreparedData, "split", lambda self, name: (opened.append(name), split(self, name))[1])
    params = parse_params(
        {"teacher": {"name": "resnet8", "train": TRAIN}, "student": {"name": "resnet8"}, "train": TRAIN}
    )
    where = {"data": few_digits, "work": tmp_path / "work", "params": params}
    teacher_step.run(**where, out=tmp_path / "teacher")
    for reference in (None, "baseline", "kd"):
        distill.run(**where, teacher=tmp_path / "teacher", out=tmp_path / str(reference), reference=reference)
    assert {"train", "validation"} == set(opened)


@pytest.mark.parametrize("method", ["gompertz", "crd"])  # crd draws at random in every step
def test_the_seed_decides_everything_whatever_ran_before(method, tmp_path, few_digits):
    short = parse_params({"teacher": {"name": "resnet8", "train": {"epochs": 1, "device": "cpu"}}})
    teacher_step.run(data=few_digits, out=tmp_path / "teacher", work=tmp_path / "work", params=short)
    digests = []
    for i, seed in enumerate((5, 5, 6)):
        torch.manual_seed(100 + i)
        np.random.seed(100 + i)  # the legacy generator is what a library might draw from
        params = parse_params(
            {
                "student": {"name": "resnet8"},
                "distill": {"method": method},
                "train": {"epochs": 1, "device": "cpu", "seed": seed},
            }
        )
        where = {"data": few_digits, "teacher": tmp_path / "teacher", "work": tmp_path / "work"}
        distill.run(**where, out=tmp_path / str(i), params=params)
        digests.append(file_digest(tmp_path / str(i) / "model.safetensors"))
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    assert folder_digest(tmp_path / "0") == folder_digest(tmp_path / "1")


@pytest.mark.parametrize("file", ["train/images.npy", "train/labels.npy", "test/images.npy"])
def test_a_byte_changed_after_prepare_trains_nothing(file, tmp_path, digits, teacher):
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    content = bytearray((data / file).read_bytes())
    content[-8] ^= 1
    (data / file).write_bytes(content)
    out = {"out": tmp_path / "out", "work": tmp_path / "work", "params": Params()}
    with pytest.raises(GkdError, match=r"data is damaged .*run `gkd prepare` again"):
        teacher_step.run(data=data, **out)
    with pytest.raises(GkdError, match=r"data is damaged .*run `gkd prepare` again"):
        distill.run(data=data, teacher=teacher, **out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
