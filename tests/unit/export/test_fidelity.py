import numpy as np

from gkd_core.export.fidelity import fidelity, fp16_shortfall, int8_shortfall

# Four images, three classes; float32 is right on the first three.
REFERENCE = np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3], [3, 0, 0]], np.float32)
LABELS = np.array([0, 1, 2, 1])


def test_counts_by_hand() -> None:
    logits = REFERENCE.copy()
    logits[0] = [2, 2.5, 0]  # now wrong
    logits[3] = [0, 1, 0]  # now right
    assert fidelity(logits, REFERENCE, LABELS) == {
        "agreement": 0.5,
        "top1": 0.75,
        "top1_fp32": 0.75,
        "max_abs": 3.0,
        "images": 4,
    }


def test_the_gate_holds_at_its_very_limits() -> None:
    found = {"agreement": 0.98, "top1": 0.89, "top1_fp32": 0.9, "max_abs": 0.5, "images": 5000}
    assert int8_shortfall(found, min_agreement=0.98, max_accuracy_drop=0.01) is None
    assert int8_shortfall(found, min_agreement=0.981, max_accuracy_drop=0.01) == (
        "int8 names the same class as float32 on 5,000 validation images in 98.00 % of cases, "
        "export.int8.min_agreement asks for 98.1 %"
    )
    assert int8_shortfall(found, min_agreement=0.98, max_accuracy_drop=0.009) == (
        "int8 loses 1.00 points of top-1 on 5,000 validation images (89.00 instead of 90.00 %), "
        "export.int8.max_accuracy_drop allows 0.9"
    )
    better = found | {"top1": 0.95}
    assert int8_shortfall(better, min_agreement=0.98, max_accuracy_drop=0.0) is None


def test_a_half_is_judged_by_its_logits() -> None:
    found = {"agreement": 1.0, "top1": 0.9, "top1_fp32": 0.9, "max_abs": 0.05, "images": 144}
    assert fp16_shortfall(found, tolerance=0.05) is None
    assert fp16_shortfall(found, tolerance=0.04) == (
        "float16 differs from float32 by up to 5.0e-02 on a logit on 144 validation images, export.fp16_tolerance "
        "allows 0.04"
    )


def test_logits_that_are_no_numbers_never_pass() -> None:
    logits = REFERENCE.copy()
    logits[2, 2] = np.inf
    found = fidelity(logits, REFERENCE, LABELS)
    assert found["agreement"] == 1.0
    assert "not finite" in str(int8_shortfall(found, min_agreement=0.0, max_accuracy_drop=1.0))
    assert "beyond 65504" in str(fp16_shortfall(found, tolerance=100.0))
    logits[2, 2] = np.nan
    assert "not finite" in str(
        int8_shortfall(fidelity(logits, REFERENCE, LABELS), min_agreement=0, max_accuracy_drop=1)
    )
