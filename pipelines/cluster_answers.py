"""What questions to a Kubeflow Pipelines server have in common: filters, pages, times, experiments."""

import json
from datetime import UTC, datetime
from typing import Any

from gkd_core.errors import GkdError, unknown
from pipelines.cluster import Cluster, ClusterError

PAGE = 100


def named(key: str, value: str) -> str:
    """A filter as the server takes it: only what has this name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def whole(cluster: Cluster, answer: Any, field: str) -> Any:
    """The answer, which has this identifier.

    Raises:
        ClusterError: it has not, so it is somebody else's.
    """
    if not getattr(answer, field, None):
        raise ClusterError(
            f"{cluster.host} answers without a {field}: give the address of the Kubeflow Pipelines API", status=200
        )
    return answer


def moment(value: datetime | None) -> str | None:
    """A time as text, in UTC; None for one that was never set."""
    # An unset time comes as year 1 or 1970.
    return None if value is None or value.year <= 1970 else value.astimezone(UTC).isoformat(timespec="seconds")


def experiment_id(cluster: Cluster, name: str) -> str:
    """The identifier of the experiment of this name, which is made when it is not there."""
    made = cluster.call(cluster.client.create_experiment, name, namespace=cluster.namespace)
    return whole(cluster, made, "experiment_id").experiment_id


def known_experiment_id(cluster: Cluster, name: str) -> str:
    """The identifier of the experiment of this name.

    Raises:
        GkdError: there is none.
    """
    listed = cluster.client.list_experiments
    found = cluster.call(listed, filter=named("display_name", name), namespace=cluster.namespace).experiments
    if found:
        return found[0].experiment_id
    others = cluster.call(listed, page_size=PAGE, namespace=cluster.namespace).experiments or []
    raise GkdError(unknown("experiment", name, [e.display_name for e in others] or ["none"]))
