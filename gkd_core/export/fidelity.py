"""How near a smaller file stays to the float32 one it was made of, and whether that is near enough. No clock in it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.evaluation.quality import agreement, top_k_correct


def fidelity(
    logits: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, float | int]:
    """Agreement and accuracy of a file beside the one it was made of, on the same images.

    Args:
        logits, reference: [N, C] of the smaller file and of float32.
        labels: [N].
    Returns:
        agreement, top1, top1_fp32 (six decimals), max_abs (two significant digits; None where a logit is not finite),
        images.
    """
    largest = float(np.abs(logits - reference).max())
    return {
        "agreement": round(agreement(logits, reference), 6),
        "top1": round(float(top_k_correct(logits, labels, 1).mean()), 6),
        "top1_fp32": round(float(top_k_correct(reference, labels, 1).mean()), 6),
        **({"max_abs": float(f"{largest:.1e}")} if np.isfinite(largest) else {}),
        "images": len(labels),
    }


def int8_shortfall(found: dict[str, Any], *, min_agreement: float, max_accuracy_drop: float) -> str | None:
    """Why an int8 file is not kept, in one sentence with its numbers; None when it passes.

    Args:
        found: what `fidelity` gave on the validation images.
        min_agreement: part of the images on which both must name the same class.
        max_accuracy_drop: top-1 it may lose.
    """
    drop = found["top1_fp32"] - found["top1"]
    on = f"on {found['images']:,} validation images"
    if "max_abs" not in found:
        return f"int8 gives logits that are not finite {on}"
    if found["agreement"] < min_agreement:
        return (
            f"int8 names the same class as float32 {on} in {100 * found['agreement']:.2f} % of cases, "
            f"export.int8.min_agreement asks for {100 * min_agreement:g} %"
        )
    if round(drop, 6) > max_accuracy_drop:
        return (
            f"int8 loses {100 * drop:.2f} points of top-1 {on} ({100 * found['top1']:.2f} instead of "
            f"{100 * found['top1_fp32']:.2f} %), export.int8.max_accuracy_drop allows {100 * max_accuracy_drop:g}"
        )
    return None


def fp16_shortfall(found: dict[str, Any], *, tolerance: float) -> str | None:
    """Why a float16 file is not kept; None when its logits are within `tolerance` of float32's."""
    on = f"on {found['images']:,} validation images"
    if "max_abs" not in found:
        return f"float16 gives logits that are not finite {on}: values beyond 65504 have no half"
    if found["max_abs"] > tolerance:
        return (
            f"float16 differs from float32 by up to {found['max_abs']:.1e} on a logit {on}, export.fp16_tolerance "
            f"allows {tolerance:g}"
        )
    return None
