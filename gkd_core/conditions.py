"""Conditions under which a version becomes champion: `NAME>=NUMBER` on what was measured of it, or a server counted.

A condition whose value nobody can know (no request was counted yet) does not hold. A pure function of numbers, as the
gate is; who fetches them is `components/registry.py`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gkd_core.errors import GkdError, unknown
from gkd_core.export.reference import total_variation
from gkd_core.gate import TOLERANCE, Check, GateDecision

LIVE = "live."
LIVE_METRICS = (
    "requests",
    "error_rate",
    "latency_ms_p50",
    "latency_ms_p95",
    "latency_ms_p99",
    "images",
    "class_drift",
    "confidence_shift",
    "none_of_these",
)
"""What is read from servers, after `live.` in a condition."""

HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, limit: value >= limit - TOLERANCE,
    "<=": lambda value, limit: value <= limit + TOLERANCE,
    ">": lambda value, limit: value > limit,
    "<": lambda value, limit: value < limit,
}
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
CONDITION = re.compile(rf"\s*([A-Za-z_][\w./-]*)\s*(>=|<=|>|<)\s*({NUMBER})\s*")
ENDPOINTS = ("infer", "classify")  # what clients ask for; health and metrics are not counted

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
"""The samples of one /metrics by name and labels."""


@dataclass(frozen=True)
class Condition:
    """`name` compared by `operator` with `limit`; a name that begins with `live.` is a server's."""

    name: str
    operator: str
    limit: float

    @property
    def live(self) -> bool:
        """Whether it is read from servers."""
        return self.name.startswith(LIVE)

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.limit:g}"


def parse_condition(text: str) -> Condition:
    """A condition as it was written.

    Raises:
        GkdError: it is none, or names a live metric that there is not.

    >>> parse_condition("live.error_rate <= 0.01")
    Condition(name='live.error_rate', operator='<=', limit=0.01)
    """
    match = CONDITION.fullmatch(text)
    if match is None:
        raise GkdError(
            f"--when {text!r} is no condition: write NAME>=NUMBER, NAME<=NUMBER, NAME>NUMBER or NAME<NUMBER, in "
            "quotes, since a shell takes > and < for itself"
        )
    found = Condition(match[1], match[2], float(match[3]))
    if found.live and found.name.removeprefix(LIVE) not in LIVE_METRICS:
        raise GkdError(unknown("--when: metric", found.name, [LIVE + name for name in LIVE_METRICS]))
    return found


def judge(
    conditions: Sequence[Condition],
    values: Mapping[str, float | str],
    *,
    version: int,
    promotion_blocked: str | None = None,
) -> GateDecision:
    """Whether all conditions hold.

    Args:
        values: by the name in a condition its value, or why there is none, in words.
        version: the number of the version they are about.
        promotion_blocked: why a person took it back earlier; conditions do not overrule that.
    Raises:
        GkdError: a condition names what `values` does not have.
    """
    checks = []
    for condition in conditions:
        if condition.name not in values:
            known = sorted(name for name in values if not name.startswith(LIVE))
            raise GkdError(unknown(f"--when: metric of version {version}", condition.name, known))
        value = values[condition.name]
        if isinstance(value, str):
            checks.append(
                Check(str(condition), False, None, condition.limit, f"{condition.name} is not known: {value}")
            )
            continue
        holds = HOLDS[condition.operator](value, condition.limit)  # false for NaN
        sentence = f"{condition.name} is {value:.6g}, and {condition.operator} {condition.limit:g} is asked"
        checks.append(Check(str(condition), holds, value if math.isfinite(value) else None, condition.limit, sentence))
    if promotion_blocked is not None:
        sentence = (
            f"it was taken back by hand ({promotion_blocked}), and only `gkd registry promote {version}` without --when"
            " brings it back"
        )
        checks.append(Check("promotion_blocked", False, None, None, sentence))
    failed = [check.sentence for check in checks if not check.passed]
    if failed:
        return GateDecision(False, tuple(checks), f"version {version} was not promoted: {'; '.join(failed)}")
    return GateDecision(True, tuple(checks), f"version {version} meets {', '.join(map(str, conditions))}")


def live_values(servers: Mapping[str, Samples], *, version: int, digests: frozenset[str]) -> dict[str, float | str]:
    """What servers counted of a version, by the name in a condition; counts of several servers are added.

    - `requests` to infer and classify; `error_rate`, the part of them answered with 5xx; `latency_ms_p50`, `p95`, `p99`
      of those, as Prometheus' `histogram_quantile` reckons them.
    - `images` that were counted by class; `class_drift`, the total variation between these classes and those on the
      validation images; `confidence_shift`, |mean confidence − the same there|.
    - `none_of_these`, the part of the images that the model gave no class, where it decides.

    Args:
        servers: samples by address.
        version, digests: the registered number, and the sha256 of its files. A server must serve one of these files;
            where none is known, it must serve that number.
    """
    names = [LIVE + name for name in LIVE_METRICS]
    for address, samples in servers.items():
        if other := _other_model(samples, version, digests):
            return dict.fromkeys(names, f"{address} serves {other}")
    changed = next((address for address, samples in servers.items() if _changed(samples)), None)
    total: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for samples in servers.values():
        for key, value in samples.items():
            total[key] = total.get(key, 0.0) + value
    counted = _requests(total)
    if changed is not None:  # its counts do not say of which model, those of answers do
        counted = dict.fromkeys(counted, f"{changed} has changed its model since it started, and counts both")
    found = counted | _answers(total, len(servers)) | {"none_of_these": _none_of_these(total)}
    return {name: found[name.removeprefix(LIVE)] for name in names}


def _other_model(samples: Samples, version: int, digests: frozenset[str]) -> str | None:
    """What a server serves instead; None where it is the version."""
    served = next((dict(labels) for (name, labels), _ in samples.items() if name == "gkd_model_info"), None)
    if served is None:
        return "no model of gkd"
    if digests:
        same = served.get("model_sha256") in digests
        return None if same else f"another model ({served.get('model_sha256', '')[:12]}) than version {version}"
    return None if served.get("version") == str(version) else f"version {served.get('version')}, not {version}"


def _changed(samples: Samples) -> bool:
    return samples.get(("gkd_reloads_total", frozenset({("outcome", "loaded")})), 0.0) > 0


def _requests(samples: Samples) -> dict[str, float | str]:
    answers = [
        (dict(labels)["status"], value)
        for (name, labels), value in samples.items()
        if name == "gkd_requests_total" and dict(labels)["endpoint"] in ENDPOINTS
    ]
    requests: float = sum(value for _, value in answers)
    buckets: dict[float, float] = {}
    for (name, labels), value in samples.items():
        if name == "gkd_request_seconds_bucket" and (found := dict(labels))["endpoint"] in ENDPOINTS:
            buckets[float(found["le"])] = buckets.get(float(found["le"]), 0.0) + value
    quantiles = {"latency_ms_p50": 0.5, "latency_ms_p95": 0.95, "latency_ms_p99": 0.99}
    if not requests or not buckets:
        return {"requests": requests} | dict.fromkeys(("error_rate", *quantiles), "no request was counted yet")
    failed = sum(value for status, value in answers if status.startswith("5"))
    measured = {name: 1000 * _quantile(buckets, part) for name, part in quantiles.items()}
    return {"requests": requests, "error_rate": failed / requests, **measured}


def _quantile(buckets: Mapping[float, float], part: float) -> float:
    """Linear within a bucket; the last finite bound for what lies beyond it."""
    bounds = sorted(buckets)
    wanted, lower, below = part * buckets[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (wanted - below) / max(buckets[bound] - below, TOLERANCE)
        lower, below = bound, buckets[bound]
    return lower


def _answers(samples: Samples, servers: int) -> dict[str, float | str]:
    """Of several servers the reference's numbers were added as well: shares are shares again when they are divided by
    their sum, the confidence is divided by the number of servers."""
    reference = {dict(labels)["class"]: v for (name, labels), v in samples.items() if name == "gkd_reference_share"}
    names = ("images", "class_drift", "confidence_shift")
    if not reference:
        return dict.fromkeys(names, "the model came without a reference: export it again and serve its folder")
    counts: dict[str, float] = dict.fromkeys(reference, 0.0)
    sums: dict[str, float] = {}
    for (name, labels), value in samples.items():
        if name == "gkd_predictions_total":
            counts[dict(labels)["class"]] += value
        else:
            sums[name] = sums.get(name, 0.0) + value
    images = sums["gkd_confidence_count"]
    if not images:
        return {"images": images} | dict.fromkeys(names[1:], "no image was counted yet")
    mean = sums["gkd_confidence_sum"] / images
    shift = abs(mean - sums["gkd_reference_confidence"] / servers)
    drift = total_variation(list(counts.values()), list(reference.values()))
    return {"images": images, "class_drift": drift, "confidence_shift": shift}


def _none_of_these(samples: Samples) -> float | str:
    counted = [(dict(labels), value) for (name, labels), value in samples.items() if name == "gkd_decisions_total"]
    if not counted:
        return "the model gives every image a class: export it with decide"
    images = sum(value for _, value in counted)
    none = sum(value for labels, value in counted if labels["decision"] == "none")
    return none / images if images else "no image was counted yet"
