"""`params.yaml`, the one configuration.

`schema` says what each field means, `checks` what contradicts what, `load` how a file becomes `Params`.
"""

from gkd_core.config.checks import refuse_unfit_augmentation as refuse_unfit_augmentation
from gkd_core.config.checks import unlabelled_refused as unlabelled_refused
from gkd_core.config.checks import unmixable as unmixable
from gkd_core.config.checks import unweighable as unweighable
from gkd_core.config.load import load_params as load_params
from gkd_core.config.load import load_plugins as load_plugins
from gkd_core.config.load import override as override
from gkd_core.config.load import params_of_sections as params_of_sections
from gkd_core.config.load import parse_params as parse_params
from gkd_core.config.load import parse_section as parse_section
from gkd_core.config.load import read_sections as read_sections
from gkd_core.config.schema import CHANGES_NOTHING as CHANGES_NOTHING
from gkd_core.config.schema import AugmentConfig as AugmentConfig
from gkd_core.config.schema import DataConfig as DataConfig
from gkd_core.config.schema import DecideConfig as DecideConfig
from gkd_core.config.schema import DistillConfig as DistillConfig
from gkd_core.config.schema import EvaluateConfig as EvaluateConfig
from gkd_core.config.schema import ExportConfig as ExportConfig
from gkd_core.config.schema import Int8Config as Int8Config
from gkd_core.config.schema import MethodConfig as MethodConfig
from gkd_core.config.schema import NetworkConfig as NetworkConfig
from gkd_core.config.schema import Params as Params
from gkd_core.config.schema import TeacherConfig as TeacherConfig
from gkd_core.config.schema import TrackingConfig as TrackingConfig
from gkd_core.config.schema import TrainingConfig as TrainingConfig
