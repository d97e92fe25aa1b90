"""docs/plugins.md: what stands there runs."""

import re
import sys
import types
from pathlib import Path

import pytest
import yaml

import gkd_core as gkd
from gkd_core import plugins
from gkd_core.config import parse_params
from gkd_core.data.prepared import PreparedData

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()


@pytest.mark.usefixtures("forget_plugins")
def test_the_pages_three_examples_train_together(few_digits, monkeypatch):
    module = types.ModuleType("my_package")
    module.losses = module.networks = module
    for name in ("my_package", "my_package.losses", "my_package.networks"):
        monkeypatch.setitem(sys.modules, name, module)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, vars(module))
    params = parse_params(yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0]))
    assert dict(plugins.registered("method")) == {"logit-gap": "my_package"}
    data = PreparedData.open(few_digits)
    student, teacher = (gkd.create_model(name, data=data) for name in (params.student.name, "resnet8"))
    result = gkd.distill(
        student,
        teacher,
        data,
        method=params.distill.method,
        options=params.distill.hyperparameters(),
        augment=params.train.augment.model_dump(exclude_unset=True),
        epochs=1,
        device="cpu",
    )
    assert "train_gap" in result.history[0]


def test_the_page_names_the_group_that_is_looked_in():
    assert f'entry-points."{plugins.GROUP}"' in PAGE
