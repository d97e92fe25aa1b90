"""The first task: the parameters as a whole, checked before anything is trained, then divided among the steps."""

import re
from collections.abc import Sequence
from typing import Any

from gkd_core.config import Params, params_from_dict
from gkd_core.errors import GkdError


def resolve(
    params: dict[str, Any], overrides: Sequence[str] = (), *, data_source: str = "", mlflow: str = ""
) -> Params:
    """The configuration a run of the pipeline has.

    Args:
        params: content of params.yaml.
        overrides: `section.key=value`.
        data_source: replaces `data.source` unless empty.
        mlflow: replaces `tracking.uri` unless empty.
    Raises:
        GkdError: something is not valid, the networks or hyperparameters are unknown, or the tracking store's address
            holds a password.
    """
    more = [f"data.source={data_source}"] * bool(data_source) + [f"tracking.uri={mlflow}"] * bool(mlflow)
    found = params_from_dict(params, [*overrides, *more])
    refuse_password(found)
    return found


def refuse_password(params: Params) -> None:
    """See that the parameters, which the user interface and the compiled file show to everybody, hold no password.

    Raises:
        GkdError: `tracking.uri` holds one.
    """
    if re.search(r"://[^/@\s]*:[^/@\s]+@", params.tracking.uri or ""):
        raise GkdError(
            "tracking.uri holds a password, which everybody who sees the pipeline would see: leave it null and give "
            "the address as MLFLOW_TRACKING_URI, on a cluster from a secret that the profile names"
        )
