"""What is registered, and who is champion: list, promote, go back. Decisions by hand; the gate's are register.py's."""

import datetime
import importlib.util
import json
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.mlflow_store import Store, Version, connect
from gkd_core.conditions import Samples, judge, live_values, parse_condition
from gkd_core.config import TrackingConfig
from gkd_core.errors import GkdError
from gkd_core.records import read_gate, read_version
from gkd_core.redact import redact
from gkd_core.serving.authorisation import VARIABLE, read_token
from gkd_core.verify import Broken, Link

LONGEST_METRICS = 1 << 26  # bytes of a /metrics: two lines a class
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous_champion"


def list_versions(settings: TrackingConfig) -> list[dict[str, Any]]:
    """One row a registered version, newest first: version, aliases, top1, gate, created, method, network, and the short
    digests of data, teacher, student and manifest; `held` says why one was taken back, where it was.

    Raises:
        GkdError: the tracking store does not answer.
    """
    with connect(settings, again="gkd registry list") as store:
        versions, aliases = store.versions(), store.aliases()
    return [
        _row(version, [name for name, number in aliases.items() if number == version.number]) for version in versions
    ]


def promote(settings: TrackingConfig, version: str, *, reason: str) -> dict[str, Any]:
    """Make a version champion, whatever the gate said; the champion before it becomes previous_champion.

    Args:
        version: a number or an alias.
        reason: kept as a tag.
    Returns:
        name, champion, previous_champion, reason.
    Raises:
        GkdError: there is no such version or alias, or the tracking store does not answer.
    """
    with connect(settings, again="gkd registry promote") as store:
        return _make_champion_by_hand(store, store.version(version).number, reason)


def promote_when(
    settings: TrackingConfig,
    version: str,
    *,
    when: Sequence[str],
    metrics: Sequence[str] = (),
    reason: str | None = None,
) -> dict[str, Any]:
    """Make a version champion if all conditions hold; otherwise nothing moves. As with the gate, a refusal is a result.

    Args:
        version: a number or an alias.
        when: conditions as `gkd_core.conditions` reads them, on the metrics that the version's MLflow run has, or on
            what servers counted, where a name begins with `live.`.
        metrics: addresses of these servers; the token they want is GKD_TOKEN.
        reason: kept as a tag; None is the conditions.
    Returns:
        name, version, passed, sentence, reasons (as in gate.json), champion, previous_champion; with `passed`, reason.
    Raises:
        GkdError: no such version, alias or metric, a condition that is none; a server or the store does not answer.
    """
    conditions = [parse_condition(text) for text in when]
    live = [str(condition) for condition in conditions if condition.live]
    if live and not metrics:
        raise GkdError(f"--when {live[0]!r} is about a server, and none is named: give --metrics http://SERVER/metrics")
    if metrics and not live:
        raise GkdError("--metrics names a server, and no --when begins with live., so nothing asks it: leave it out")
    servers = {address: _samples(address) for address in metrics}
    with connect(settings, again="gkd registry promote") as store:
        found = store.version(version)
        values: dict[str, float | str] = dict(store.metrics(found))
        if servers:
            files = {value for tag, value in found.tags.items() if tag == "gkd.model" or tag.startswith("gkd.model_")}
            values |= live_values(servers, version=found.number, digests=frozenset(files))
        held = found.tags.get("gkd.held") or None
        decision = judge(conditions, values, version=found.number, promotion_blocked=held)
        facts = {"name": store.name, "version": found.number, **decision.as_dict()}
        if decision.passed:
            return facts | _make_champion_by_hand(store, found.number, reason or decision.sentence)
        aliases = store.aliases()
        return facts | {"champion": aliases.get(CHAMPION), "previous_champion": aliases.get(PREVIOUS)}


def rollback(settings: TrackingConfig, *, reason: str = "rolled back by hand") -> dict[str, Any]:
    """Champion and previous_champion change places; the gate will not promote the one taken back again by itself.

    Returns:
        name, champion, previous_champion, reason.
    Raises:
        GkdError: there is no earlier champion, or the tracking store does not answer.
    """
    with connect(settings, again="gkd registry rollback") as store:
        store.versions()  # refuses an unknown model
        aliases = store.aliases()
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if previous is None or previous == champion:
            raise GkdError(
                f"{store.name} has no previous_champion to go back to: `gkd registry list` shows the versions, "
                "`gkd registry promote VERSION` makes one champion"
            )
        if champion is not None:
            store.tag(champion, {"gkd.held": f"{_today()}: {reason}"})
        return _make_champion_by_hand(store, previous, reason)


def compare_registration(folder: Path, store: Store, version: Version) -> Iterator[Link]:
    """What only the registry can tell of a registration folder: the gate's decision, the run, and the alias.

    An alias that has moved on since proves nothing, so that it is told and not held against the folder.
    """
    gate, noted = read_gate(folder), read_version(folder)
    gate.pop("metrics_sha256", None)  # the report's
    decided = json.dumps(gate, ensure_ascii=False, sort_keys=True)  # as the tag was written
    where = f"version {version.number} of {store.name}"
    if "gate.record" in version.tags and version.tags["gate.record"] != decided:
        raise Broken(
            f"{folder / 'gate.json'} is not what the tag gate.record of {where} holds: run `gkd register` again"
        )
    if noted.get("run_id") != version.run_id:
        raise Broken(f"{folder / 'version.json'} names another run than {where}: run `gkd register` again")
    known = "gate.record" in version.tags
    found = f"the gate's decision on {where}" if known else f"not verified: {where} has no tag gate.record"
    yield Link("registration → registry", found, holds=known)
    there = [alias for alias, number in store.aliases().items() if number == version.number]
    now = f"{where} is {', '.join(sorted(there)) or 'without alias'}"
    if noted["alias"] in there or not (noted["alias"] or there):
        yield Link("registration: alias", now)
    else:
        found = f"not verified: version.json says {noted['alias']}, now {now}"
        yield Link("registration: alias", found, holds=False, wanted=False)


def make_champion(store: Store, number: int) -> None:
    """Move the alias champion, and previous_champion to where it was."""
    before = store.aliases().get(CHAMPION)
    if before == number:
        return
    if before is not None:
        store.point(PREVIOUS, before)
    store.point(CHAMPION, number)


def _samples(address: str) -> Samples:
    """The samples that a server's /metrics has now.

    Raises:
        GkdError: nothing answers there, or what answers is not Prometheus' text.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        raise GkdError(
            "--metrics reads Prometheus' text with prometheus-client, which is not installed: add gkd[serve]"
        )
    from prometheus_client.parser import text_string_to_metric_families

    parts, shown = urlsplit(address if "://" in address else f"http://{address}"), redact(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise GkdError(f"--metrics {shown!r} is no address: write http://SERVER:PORT/metrics")
    url = parts._replace(path="/metrics").geturl() if parts.path in ("", "/") else parts.geturl()
    request = urllib.request.Request(url, headers={"User-Agent": "gkd"})
    if (token := read_token(None)) is not None:
        request.add_unredirected_header("Authorization", token.header)  # for the server that was named, and no other
    try:
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            text = answer.read(LONGEST_METRICS).decode()
        families = list(text_string_to_metric_families(text))
    except Exception as error:  # a server may answer anything
        hint = (
            f"set {VARIABLE} to the server's token" if getattr(error, "code", 0) == 401 else "see that gkd serves there"
        )
        raise GkdError(f"--metrics {shown} has no metrics to read ({redact(str(error))}): {hint}") from None
    return {
        (sample.name, frozenset(sample.labels.items())): float(sample.value)
        for family in families
        for sample in family.samples
    }


def _make_champion_by_hand(store: Store, number: int, reason: str) -> dict[str, Any]:
    make_champion(store, number)
    store.tag(number, {"gkd.promoted": f"{_today()}: {reason}", "gkd.held": ""})
    previous = store.aliases().get(PREVIOUS)
    return {"name": store.name, "champion": number, "previous_champion": previous, "reason": reason}


def _row(version: Version, aliases: list[str]) -> dict[str, Any]:
    tags = version.tags
    decided = {"true": "passed", "false": "refused"}.get(tags.get("gate.passed", ""), "")
    created = datetime.datetime.fromtimestamp(version.created_ms / 1000, datetime.UTC)
    return {
        "version": version.number,
        "aliases": sorted(aliases),
        "top1": float(tags["gkd.top1"]) if "gkd.top1" in tags else None,
        "gate": decided,
        "created": created.isoformat(timespec="seconds"),
        "method": tags.get("gkd.method", ""),
        "network": tags.get("gkd.network", ""),
        "held": tags.get("gkd.held", ""),
        **{name: tags.get(f"gkd.{name}", "")[:12] for name in ("data", "teacher", "student", "manifest")},
    }


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
