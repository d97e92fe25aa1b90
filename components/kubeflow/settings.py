"""The first task: the parameters as a whole, checked before anything is trained, then divided among the steps."""

import re
from collections.abc import Sequence
from typing import Any

from gkd_core.config import Params, parse_params
from gkd_core.errors import GkdError
from gkd_core.redact import address_with_secret


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
        GkdError: something is not valid, the networks or hyperparameters are unknown, or an address holds a password.
    """
    more = [f"data.source={data_source}"] * bool(data_source) + [f"tracking.uri={mlflow}"] * bool(mlflow)
    refuse_password([params, [*overrides, *more]])
    return parse_params(params, [*overrides, *more])


def refuse_password(given: Any) -> None:
    """See that what the user interface and the compiled file show to everybody holds no password.

    Args:
        given: text, or parameters and arguments however nested.
    Raises:
        GkdError: an address in it has a password or a token.
    """
    if isinstance(given, dict):
        given = [*given.keys(), *given.values()]
    if isinstance(given, list | tuple):
        for part in given:
            refuse_password(part)
    elif isinstance(given, str) and (address := address_with_secret(given)):
        raise GkdError(
            f"the address {address} holds a password or a token, which everybody who sees the pipeline would see: "
            "leave it out, and give it from a secret that the profile names (MLflow's as MLFLOW_TRACKING_URI)"
        )


def refuse_own_store(name: str, uri: str) -> None:
    """See that the results of a run go to a server: a file would be in a pod, and gone with it.

    Args:
        name: what the address is called where it was given.
        uri: address of the tracking store; empty is none.
    Raises:
        GkdError: it is a file or a folder, or an address without http:// or the like.
    """
    if uri and (
        re.match(r"(sqlite|file)\b", uri, re.IGNORECASE) or (":" not in uri and uri not in ("databricks", "uc"))
    ):
        raise GkdError(
            f"{name} is {uri}, a file on this machine, which a cluster's pods do not have: give the address of an "
            "MLflow server"
        )
    if uri and "://" not in uri and not re.fullmatch(r"databricks(-uc)?|uc(:.*)?", uri):
        raise GkdError(f"{name} is {uri}, which is no address of an MLflow server: write http://{uri}, or https://")
