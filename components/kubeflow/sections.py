"""Which sections of the parameters a step is given; those of dvc.yaml, which a test compares.

A step that is given no more than it reads runs again only when that changed: another method trains no teacher anew,
neither under DVC nor from a cluster's cache.
"""

from typing import Any

from gkd_core.config import Params

READS: dict[str, tuple[str, ...]] = {
    "prepare": ("data",),
    "teacher": ("teacher",),
    "baseline": ("student", "train", "references"),
    "kd": ("student", "train", "references"),
    "distill": ("student", "train", "distill"),
    "export": ("export",),
    "evaluate": ("evaluate",),
    "register": ("gate", "tracking"),
}
# What the report and the registered runs show of the other steps' parameters; it changes nothing that is measured.
SHOWN = ("data", "teacher", "student", "distill", "train", "references", "export", "evaluate")
SHOW = ("evaluate", "register")


def divide(params: Params) -> dict[str, dict[str, Any]]:
    """The sections by step, as JSON content.

    Beyond `READS`: what a report shows, and the tracking store's address for a teacher that comes from there.
    """
    content = params.model_dump(mode="json")
    wanted = {step: {*reads, *(SHOWN if step in SHOW else ())} for step, reads in READS.items()}
    if (params.teacher.source or "").startswith("models:/"):
        wanted["teacher"].add("tracking")
    return {step: {name: content[name] for name in content if name in names} for step, names in wanted.items()}
