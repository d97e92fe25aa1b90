"""`params.yaml`, the one configuration.

`schema` says what each field means, `checks` what contradicts what, `load` how a file becomes `Params`.
"""

from gkd_core.config.checks import refuse_wide_augmentation
from gkd_core.config.load import (
    load_params,
    params_of_sections,
    parse_params,
    parse_section,
    read_sections,
)
from gkd_core.config.schema import (
    AugmentConfig,
    CurveConfig,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    GateConfig,
    Int8Config,
    MemberConfig,
    MethodConfig,
    NetworkConfig,
    Params,
    ReferencesConfig,
    StudentConfig,
    TeacherConfig,
    TrackingConfig,
    TrainingConfig,
)

__all__ = [
    "AugmentConfig",
    "CurveConfig",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "ExportConfig",
    "GateConfig",
    "Int8Config",
    "MemberConfig",
    "MethodConfig",
    "NetworkConfig",
    "Params",
    "ReferencesConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainingConfig",
    "load_params",
    "params_of_sections",
    "parse_params",
    "parse_section",
    "read_sections",
    "refuse_wide_augmentation",
]
