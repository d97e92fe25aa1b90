"""Which feature maps of two networks are compared, and on which grid."""

from torch import Tensor
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.base import Context
from gkd_core.losses.taught import teacher_of
from gkd_core.models.network import Network

Shape = tuple[int, int, int]


def student_and_teacher_stages(context: Context, method: str) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """(C_i, H_i, W_i) of the student's stages and of the teacher's, from shallow to deep.

    Raises:
        GkdError: there is no teacher, or one of the two has no feature maps.
    """
    teacher = teacher_of(context, method)
    return stages_of(context.student, "student", method), stages_of(teacher, "teacher", method)


def stages_of(network: Network, role: str, method: str) -> tuple[Shape, ...]:
    """(C_i, H_i, W_i) of every stage.

    Raises:
        GkdError: the network has no feature maps.
    """
    shapes = network.stage_shapes()
    if not shapes:
        raise GkdError(
            f"distill.method {method} compares feature maps, and the {role} {network.spec.name} has none: choose a "
            f"method that needs logits only (kd, say) or another {role}"
        )
    return shapes


def to_smaller_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps [B, C, H, W] at the smaller of their heights and widths, by averaging over areas."""
    grid = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return _pool(student, grid), _pool(teacher, grid)


def _pool(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    return maps if maps.shape[2:] == grid else functional.adaptive_avg_pool2d(maps, grid)
