"""Learning rate over time, as pure functions of time: nothing to save, nothing to forget on resume."""

import math
from collections.abc import Callable

Factor = Callable[[float], float]


def learning_rate_factor(
    name: str,
    *,
    epochs: int,
    warmup_epochs: float = 0.0,
    milestones: tuple[int, ...] = (),
    decay_factor: float = 0.1,
) -> Factor:
    """t ↦ factor in [0, 1] on the peak learning rate, t in epochs (epoch + step / steps_per_epoch).

    - `constant`: 1.
    - `multistep`: × decay_factor from the end of each milestone epoch on.
    - `cosine`: half a cosine from 1 to 0 between the end of warm-up and the last epoch (Loshchilov & Hutter,
      arXiv:1608.03983, without restarts).
    - `onecycle`: cosine from 1/25 up to 1 over the first 30 %, then cosine down to 1/25·10⁻⁴ (Smith & Topin,
      arXiv:1708.07120, with the defaults of torch.optim.lr_scheduler.OneCycleLR).

    Warm-up multiplies by t / warmup_epochs until it reaches 1.

    Raises:
        ValueError: unknown name.
    """

    def cosine(start: float, end: float, fraction: float) -> float:
        return end + (start - end) * (1.0 + math.cos(math.pi * min(max(fraction, 0.0), 1.0))) / 2.0

    def shape(t: float) -> float:
        match name:
            case "constant":
                return 1.0
            case "multistep":
                return decay_factor ** sum(t >= milestone for milestone in milestones)
            case "cosine":
                return cosine(1.0, 0.0, (t - warmup_epochs) / (epochs - warmup_epochs))
            case "onecycle":
                rise = 0.3 * epochs
                if t < rise:
                    return cosine(1 / 25, 1.0, t / rise)
                return cosine(1.0, 1 / 25e4, (t - rise) / (epochs - rise))
        raise ValueError(f"learning-rate schedule {name!r} is unknown; known: constant, multistep, cosine, onecycle")

    shape(0.0)  # an unknown name is refused now, not at the first step
    return lambda t: shape(t) * (min(t / warmup_epochs, 1.0) if warmup_epochs else 1.0)


def thawing_factor(freeze_epochs: int, warmup_epochs: float) -> Factor:
    """t ↦ further factor on the rate of what was frozen: it rises from 0 to 1 over the warm-up that follows.

    A full step into weights that the new head has just been fitted to would undo both.
    """
    if not freeze_epochs or not warmup_epochs:
        return lambda t: 1.0
    return lambda t: min(max(t - freeze_epochs, 0.0) / warmup_epochs, 1.0)
