"""Every method's loss, and the plain functions behind them: `losses.Gompertz`, `losses.kd_loss`, …

One idea a file. Each is imported when it is first asked for, so importing this package imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkd_core.losses.attention import AttentionTransfer, attention_loss
    from gkd_core.losses.base import Loss
    from gkd_core.losses.cmkd import CorrelationMatching, cmkd_loss, soft_rank
    from gkd_core.losses.crd import ContrastiveRepresentation, contrastive_loss
    from gkd_core.losses.cross_entropy import CrossEntropy
    from gkd_core.losses.ctkd import CurriculumTemperature, reverse_gradient
    from gkd_core.losses.dist import Dist, relation_losses
    from gkd_core.losses.dkd import DecoupledKD, decoupled_kl, dkd_loss
    from gkd_core.losses.dynamickd import DynamicKD, entropy_corrected_kd_loss
    from gkd_core.losses.fitnet import FitNet, hint_loss
    from gkd_core.losses.gompertz import Gompertz
    from gkd_core.losses.gradient import gradient_loss, head_gradient
    from gkd_core.losses.kd import KnowledgeDistillation
    from gkd_core.losses.logit_standardisation import LogitStandardisation, standardise
    from gkd_core.losses.reviewkd import ReviewKD, hierarchical_context_loss
    from gkd_core.losses.rkd import RelationalDistillation, rkd_angle_loss, rkd_distance_loss
    from gkd_core.losses.self_distillation import SelfDistillation, feature_distance
    from gkd_core.losses.soft_labels import kd_loss, soft_label_kl
    from gkd_core.losses.wasserstein import wasserstein_loss

_MODULES = {
    "attention": ("AttentionTransfer", "attention_loss"),
    "base": ("Loss",),
    "cmkd": ("CorrelationMatching", "cmkd_loss", "soft_rank"),
    "crd": ("ContrastiveRepresentation", "contrastive_loss"),
    "cross_entropy": ("CrossEntropy",),
    "ctkd": ("CurriculumTemperature", "reverse_gradient"),
    "dist": ("Dist", "relation_losses"),
    "dkd": ("DecoupledKD", "decoupled_kl", "dkd_loss"),
    "dynamickd": ("DynamicKD", "entropy_corrected_kd_loss"),
    "fitnet": ("FitNet", "hint_loss"),
    "gompertz": ("Gompertz",),
    "gradient": ("gradient_loss", "head_gradient"),
    "kd": ("KnowledgeDistillation",),
    "logit_standardisation": ("LogitStandardisation", "standardise"),
    "reviewkd": ("ReviewKD", "hierarchical_context_loss"),
    "rkd": ("RelationalDistillation", "rkd_angle_loss", "rkd_distance_loss"),
    "self_distillation": ("SelfDistillation", "feature_distance"),
    "soft_labels": ("kd_loss", "soft_label_kl"),
    "wasserstein": ("wasserstein_loss",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AttentionTransfer",
    "ContrastiveRepresentation",
    "CorrelationMatching",
    "CrossEntropy",
    "CurriculumTemperature",
    "DecoupledKD",
    "Dist",
    "DynamicKD",
    "FitNet",
    "Gompertz",
    "KnowledgeDistillation",
    "LogitStandardisation",
    "Loss",
    "RelationalDistillation",
    "ReviewKD",
    "SelfDistillation",
    "attention_loss",
    "cmkd_loss",
    "contrastive_loss",
    "decoupled_kl",
    "dkd_loss",
    "entropy_corrected_kd_loss",
    "feature_distance",
    "gradient_loss",
    "head_gradient",
    "hierarchical_context_loss",
    "hint_loss",
    "kd_loss",
    "relation_losses",
    "reverse_gradient",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "soft_label_kl",
    "soft_rank",
    "standardise",
    "wasserstein_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
