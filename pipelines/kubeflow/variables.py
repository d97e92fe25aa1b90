"""What trainings on a cluster are told by their environment, which is no part of the cache's key.

So another tracking server trains nothing anew.
"""

from collections.abc import Mapping
from typing import Any

from components.graph import STEPS
from gkd_core.config import Params
from pipelines.kubeflow.task import IN_LOOPS, TRACKING

TOLD = (*(step.name for step in STEPS if step.trains), *IN_LOOPS)


def with_variables(documents: list[Any], variables: Mapping[str, str]) -> bool:
    """Give the tasks that train environment variables, in place; whether that changed anything."""
    executors, changed = documents[0].get("deploymentSpec", {}).get("executors", {}), False
    for step in TOLD:
        container = executors.get(f"exec-{step}", {}).get("container")
        if container is not None:
            before = {one["name"]: one for one in container.get("env", [])}
            after = before | {name: {"name": name, "value": value} for name, value in variables.items()}
            container["env"] = [after[name] for name in sorted(after)]
            changed |= after != before
    return changed


def tracking_variable(params: Params) -> dict[str, str]:
    """What tells a training where it is logged while it runs."""
    return {TRACKING: params.tracking.model_dump_json()}
