"""A pixel changed after the prepare step: its file has the right size, and no step takes it."""

import shutil

import pytest

from components import distill
from components import teacher as teacher_step
from gkd_core.config import Params
from gkd_core.errors import GkdError


@pytest.mark.parametrize("file", ["train/images.npy", "train/labels.npy", "validation/images.npy", "test/images.npy"])
def test_a_changed_byte_trains_nothing(file, tmp_path, digits, teacher):
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
