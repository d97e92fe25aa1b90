"""The library: everything one does to image classifiers, from data to a smaller one that is as good, and to ONNX.

>>> import gkd_core as gkd
>>> data = gkd.load_data("digits")
>>> teacher = gkd.create_model("resnet14", data=data)
>>> student = gkd.create_model("resnet8", data=data)
>>> result = gkd.distill(student, teacher, data, method="kd", epochs=1, device="cpu")

It knows torch, numpy and onnx, and nothing of kfp, dvc or mlflow. Importing it imports nothing heavy: a public name
brings its module with it when it is first asked for.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from gkd_core.cores import set_thread_defaults

if TYPE_CHECKING:
    from gkd_core import losses as losses
    from gkd_core.data.load import load_data as load_data
    from gkd_core.data.own import register_augmentation as register_augmentation
    from gkd_core.errors import GkdError as GkdError
    from gkd_core.evaluation.comparison import compare as compare
    from gkd_core.evaluation.evaluate import evaluate as evaluate
    from gkd_core.export.deploy import export_onnx as export_onnx
    from gkd_core.methods import list_methods as list_methods
    from gkd_core.methods import register_method as register_method
    from gkd_core.models.create import create_model as create_model
    from gkd_core.models.create import list_models as list_models
    from gkd_core.models.create import wrap as wrap
    from gkd_core.models.registry import register_model as register_model
    from gkd_core.models.weights import load_model as load_model
    from gkd_core.searching.search import search as search
    from gkd_core.training.trainer import distill as distill
    from gkd_core.training.trainer import train as train

# onnxruntime's packages report their use to their makers since 1.29, on Linux and macOS too, unless this is set before
# its first import. Who wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Likewise read once, by what torch brings with it: afterwards it would be of no effect, and misleading.
if "torch" not in sys.modules:
    set_thread_defaults()

__version__ = "0.1.0"

_HOME = {
    "load_data": "gkd_core.data.load",
    "create_model": "gkd_core.models.create",
    "load_model": "gkd_core.models.weights",
    "wrap": "gkd_core.models.create",
    "train": "gkd_core.training.trainer",
    "distill": "gkd_core.training.trainer",
    "evaluate": "gkd_core.evaluation.evaluate",
    "compare": "gkd_core.evaluation.comparison",
    "search": "gkd_core.searching.search",
    "export_onnx": "gkd_core.export.deploy",
    "list_models": "gkd_core.models.create",
    "list_methods": "gkd_core.methods",
    "register_method": "gkd_core.methods",
    "register_model": "gkd_core.models.registry",
    "register_augmentation": "gkd_core.data.own",
    "GkdError": "gkd_core.errors",
}

__all__ = [*_HOME, "losses"]


def __getattr__(name: str) -> Any:
    """A public name, once it is asked for (PEP 562)."""
    if name == "losses":
        return importlib.import_module("gkd_core.losses")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
