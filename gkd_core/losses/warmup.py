"""How long a method's first, gentle phase lasts in a training shorter than the published one."""

LARGEST_SHARE = 0.25  # the benchmark that the papers chose their warm-ups for has 240 epochs


def warmup_length(given: float | None, *, published: float, epochs: int) -> float:
    """Epochs of a warm-up: what was given, else the published length or a quarter of the training, the shorter one.

    Args:
        given: the user's choice; None leaves it to the rule.
        published: length in the paper's trainings.
        epochs: length of this training.
    """
    return min(published, LARGEST_SHARE * epochs) if given is None else given
