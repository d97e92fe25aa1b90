"""The register step: runs and the challenger's version in MLflow, then the gate, which may make it champion.

Safe to run again at any point: runs and the version are found by their digests, and a decision once settled is reported
again, not made again, unless the measurements or the gate's parameters changed.
"""

import csv
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.graph import STEPS
from components.mlflow_store import (
    CORRECT,
    CORRECT_TAG,
    DEPLOY,
    GATE,
    LINEAGE_TAGS,
    METRICS_TAG,
    NETWORK,
    REPORT,
    RunRecord,
    Store,
    Version,
    connect,
    flat,
)
from components.registry import CHALLENGER, CHAMPION, PREVIOUS, make_champion
from gkd_core import __version__
from gkd_core.config import Params
from gkd_core.data.arrays import open_array
from gkd_core.errors import GkdError
from gkd_core.evaluation.deploy_bench import read_bench
from gkd_core.export.manifest import SMALLER, kept_precisions, model_entry, read_manifest
from gkd_core.files import (
    file_digest,
    folder_digest,
    json_digest,
    read_json,
    refuse_to_replace,
    whole_folder,
    write_json,
)
from gkd_core.gate import Champion, GateDecision, GateRefused, TargetLatency, decide
from gkd_core.records import read_metrics, read_teacher, read_training
from gkd_core.tables import read_table

SECTIONS = {step.output: step.sections for step in STEPS if step.trains}  # by role
ATTEMPTS = 5  # decisions made anew because somebody else moved champion meanwhile


def run(
    *,
    teacher: Path,
    baseline: Path,
    kd: Path,
    student: Path,
    deploy: Path,
    report: Path,
    out: Path,
    params: Params,
) -> dict[str, Any]:
    """Log, register, decide; write gate.json and version.json to `out`.

    Args:
        teacher, baseline, kd, student: folders of the trainings; a reference that was not trained is left out.
        deploy: folder of the export step.
        report: folder of the evaluate step.
        out: appears whole or not at all.
        params: reads `gate` and `tracking`; the sections a network was trained with are logged with its run.
    Returns:
        {"gate": {"passed", "sentence"}, "registry": {"name", "version", "alias"}, "runs": {role: [run id, …]}}.
    Raises:
        GkdError: the folders do not belong together, or the tracking store does not answer.
        GateRefused: the gate refused and `gate.on_refusal` is fail; `out` is complete.
    """
    folders = {"teacher": teacher, "baseline": baseline, "kd": kd, "student": student}
    inputs = [*folders.values(), deploy, report]
    refuse_to_replace(out, inputs, kind="registration")  # before anything is registered
    manifest, metrics = read_manifest(deploy), read_metrics(report)
    metrics_digest = file_digest(report / "metrics.json")
    timings = read_json(report / "timings.json", "the report folder", keys=["onnx"])
    manifest_digest = file_digest(deploy / "manifest.json")
    trained = _measured(metrics, manifest_digest, folders, deploy=deploy, report=report)
    predicted, labels = _answers(report, manifest, metrics)
    correct = predicted == labels
    gate = params.gate.model_dump(exclude={"on_refusal", "deploy_bench"})
    if gate["min_coverage"] is None:  # what was decided before there was this rule stays decided
        del gate["min_coverage"]
    bench = params.gate.deploy_bench
    target = None if bench is None else _on_target(Path(bench), manifest, deploy)
    latency = timings["onnx"]["latency_ms_p50"] if params.gate.max_latency_ms is not None else None
    if target is not None:
        latency = asdict(target)
    decided_by = json_digest({"gate": gate, "metrics": metrics, "latency": latency})

    def judge(version: Version, champion: Champion | None) -> GateDecision:
        return decide(
            metrics,
            timings,
            version=version.number,
            correct=correct,
            parity=max(manifest["parity"]["max_abs"], metrics["onnx"]["parity_max_abs"]),
            champion=champion,
            promotion_blocked=version.tags.get("gkd.held") or None,
            answers=(predicted, labels),
            target=target,
            **gate,
        )

    with tempfile.TemporaryDirectory(prefix="gkd-") as name:
        np.save(Path(name) / CORRECT, correct)
        records = _teacher_records(teacher, metrics, timings, params)
        records |= {role: [_record(role, folders[role], metrics, timings, params)] for role in trained}
        records["student"] = [
            _with_deployment(records["student"][0], manifest_digest, deploy, report, Path(name) / CORRECT)
        ]
        with connect(params.tracking, again="gkd register", create=True) as store:
            runs = {role: [store.log_run(record) for record in some] for role, some in records.items()}
            seen_at = store.address(runs["student"][0])
            version = store.find_version(manifest_digest) or store.register(
                runs["student"][0],
                deploy / manifest["model"]["file"],
                manifest,
                _version_tags(manifest, manifest_digest, metrics, deploy)
                | {CORRECT_TAG: file_digest(Path(name) / CORRECT), METRICS_TAG: metrics_digest},
            )
            decision = _settle(store, version, decided_by, judge, labels)
            aliases = store.aliases()
    number = version.number
    alias = next((alias for alias in (CHAMPION, CHALLENGER, PREVIOUS) if aliases.get(alias) == number), None)
    with whole_folder(out, inputs, kind="registration") as folder:
        write_json(folder / "gate.json", decision | {"metrics_sha256": metrics_digest})
        write_json(
            folder / "version.json",
            {
                "name": params.tracking.model_name,
                "version": number,
                "alias": alias,
                "manifest": manifest_digest,
                "run_id": version.run_id,
                "runs": runs,
                **({"run_address": seen_at} if seen_at else {}),
            },
        )
    if not decision["passed"] and params.gate.on_refusal == "fail":
        raise GateRefused(decision["sentence"])
    return {
        "gate": {"passed": decision["passed"], "sentence": decision["sentence"]},
        "registry": {"name": params.tracking.model_name, "version": number, "alias": alias},
        "runs": runs,
    }


def _on_target(file: Path, manifest: dict[str, Any], deploy: Path) -> TargetLatency:
    """What was measured where the model will run.

    Raises:
        GkdError: the file is missing or damaged, measured another model, or no single images.
    """
    bench = read_bench(file)
    digests = {model_entry(manifest, each)["sha256"]: each for each in ("fp32", *kept_precisions(manifest))}
    again = f"run `gkd bench deploy --model {deploy}` on the target"
    if bench.model["sha256"] not in digests:
        raise GkdError(
            f"gate.deploy_bench {file} measured another model ({bench.model['sha256'][:12]}) than those in {deploy} "
            f"({', '.join(digest[:12] for digest in digests)}): {again}"
        )
    if bench.single is None:
        raise GkdError(f"gate.deploy_bench {file} has no case with one image: {again} with 1 among its --batches")
    settings = f"{digests[bench.model['sha256']]}, {bench.single.words()}"
    return TargetLatency(bench.single.latency_ms_p50, f"{bench.hardware['processor']}, {settings}")


def _settle(
    store: Store,
    version: Version,
    inputs: str,
    judge: Callable[[Version, Champion | None], GateDecision],
    labels: NDArray[np.int64],
) -> dict[str, Any]:
    """The decision on a version, carried out: content of gate.json.

    Tags in this order say how far it got: gate.* (decided), the aliases (carried out), gate.settled (done).
    """
    number, tags = version.number, version.tags
    if tags.get("gate.settled") == inputs:
        return dict(json.loads(tags["gate.record"]))
    if tags.get("gate.inputs") == inputs and store.aliases().get(CHAMPION) == number:
        record = dict(json.loads(tags["gate.record"]))  # carried out, then interrupted
        store.tag(number, {"gate.settled": inputs})
        return record

    store.point(CHALLENGER, number)
    for _ in range(ATTEMPTS):
        before = store.aliases().get(CHAMPION)
        decision = judge(version, _champion(store, before, labels))
        after = number if decision.passed else before
        record = decision.as_dict() | {"champion_before": before, "champion_after": after, "challenger": number}
        store.tag(
            number,
            {f"gate.{check.check}": check.sentence for check in decision.checks}
            | {"gate.passed": decision.passed, "gate.sentence": decision.sentence}
            | {"gate.record": record, "gate.inputs": inputs},
        )
        if store.aliases().get(CHAMPION) != before:
            continue  # somebody moved it while this was decided: the comparison was with a champion of yesterday
        if decision.passed:
            make_champion(store, number)
        store.tag(number, {"gate.settled": inputs})
        return record
    raise GkdError(
        f"the champion of {store.name} changed {ATTEMPTS} times while version {number} was judged: others promote at "
        "the same time; run `gkd register` again"
    )


def _champion(store: Store, number: int | None, labels: NDArray[np.int64]) -> Champion | None:
    """What the registry knows of it; its predictions count only where they say what its record says."""
    if number is None:
        return None
    version = store.version(str(number))
    top1 = version.tags.get("gkd.top1")
    with tempfile.TemporaryDirectory(prefix="gkd-") as name:
        correct = _kept(store.download(version, f"{GATE}/{CORRECT}", Path(name)))
        predicted = _kept(store.download(version, f"{REPORT}/predictions.npy", Path(name)))
    correct = None if correct is None else correct.astype(bool)
    if predicted is not None and predicted.shape != labels.shape:
        predicted = None
    if predicted is not None and (correct is None or not np.array_equal(predicted == labels, correct)):
        predicted = None  # of other images, or damaged
    return Champion(
        version=number,
        data_sha256=version.tags.get("gkd.data"),
        top1=None if top1 is None else float(top1),
        correct=correct,
        predicted=predicted,
    )


def _kept(file: Path | None) -> NDArray[Any] | None:
    """An array from the store; one that is damaged there is as good as none."""
    try:
        return None if file is None else np.array(open_array(file))
    except ValueError:
        return None


def _measured(
    metrics: dict[str, Any], manifest_digest: str, folders: Mapping[str, Path], *, deploy: Path, report: Path
) -> list[str]:
    """The roles that were trained, once it is sure that the report measured these very folders.

    Raises:
        GkdError: a folder is of another kind, or the report measured another.
    """
    digests = metrics["digests"]
    if digests["manifest"] != manifest_digest:
        raise GkdError(f"{report} measures another model than the one in {deploy}: run `gkd evaluate` again")
    read_teacher(folders["teacher"])
    trained = [role for role in ("baseline", "kd", "student") if read_training(folders[role], role)["trained"]]
    for role in folders:
        now = folder_digest(folders[role]) if role == "teacher" or role in trained else None
        if digests.get(role) != now:
            raise GkdError(
                f"{report} measures another {role} than the one in {folders[role]}: give another --{role}, or run "
                "`gkd evaluate` again"
            )
    return trained


def _answers(
    report: Path, manifest: dict[str, Any], metrics: dict[str, Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[N] the class that the final ONNX names for each test image, and [N] the labels, which are those beside the
    report's confusion."""
    positions = {name: position for position, name in enumerate(manifest["classes"])}
    try:
        predictions = np.array(open_array(report / "predictions.npy"))
        with (report / "plots" / "confusion.csv").open(newline="", encoding="utf-8") as stream:
            labels = np.array([positions[row["actual"]] for row in csv.DictReader(stream)])
        agrees = (
            predictions.shape == labels.shape
            and len(labels) > 0
            and abs(float((predictions == labels).mean()) - metrics["onnx"]["top1"]) < 1e-5
        )
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise GkdError(f"the predictions in {report} cannot be read ({error}): run `gkd evaluate` again") from None
    if not agrees:
        raise GkdError(f"the predictions in {report} do not agree with its metrics.json: run `gkd evaluate` again")
    return predictions, labels


def _version_tags(
    manifest: dict[str, Any], manifest_digest: str, metrics: dict[str, Any], deploy: Path
) -> dict[str, str]:
    """Lineage, and what a later challenger is compared with."""
    tags = {
        "gkd.manifest": manifest_digest,
        "gkd.model": manifest["model"]["sha256"],
        **{f"gkd.model_{precision}": manifest[precision]["sha256"] for precision in kept_precisions(manifest)},
        **{tag: manifest[key] for tag, key in LINEAGE_TAGS.items() if key in manifest},
        "gkd.version": __version__,
        "gkd.top1": repr(metrics["onnx"]["top1"]),
        "gkd.test_images": str(metrics["data"]["test_images"]),
    }
    return tags | _checkout(deploy / "run.json")


def _checkout(file: Path) -> dict[str, str]:
    """Git revision, dirty flag and host a folder was made at, as far as its run.json knows them."""
    facts = read_json(file, "the folder") if file.exists() else {}
    known = {f"gkd.{key}": facts.get(key) for key in ("git_revision", "git_dirty", "host")}
    return {key: str(value) for key, value in known.items() if value is not None}


def _teacher_records(
    teacher: Path, metrics: dict[str, Any], timings: dict[str, Any], params: Params
) -> dict[str, list[RunRecord]]:
    names = read_teacher(teacher)["networks"]
    if len(names) > 1:  # measured together, not one by one
        metrics = {**metrics, "teacher": {}}
        timings = {**timings, "teacher": {}}
    return {"teacher": [_record("teacher", teacher / name, metrics, timings, params) for name in names]}


def _record(role: str, folder: Path, metrics: dict[str, Any], timings: dict[str, Any], params: Params) -> RunRecord:
    """What a network's run holds: how it was trained, its curves, what it reached on the test images."""
    training = read_training(folder, "network" if role == "teacher" else role)
    digest = folder_digest(folder)
    facts = {key: value for key, value in training.items() if not key.endswith(("_digest", "_sha256"))}
    # Those of today's params.yaml are the network's own only while its digest says so.
    sections = SECTIONS[role]
    if training.get("config_digest") == params.digest(*sections):
        written = params.model_dump(mode="json", include=set(sections))
        # What recipes put in for null is logged under the parameter's name.
        (written["teacher"] if role == "teacher" else written)["train"] |= facts.pop("training", {})
        facts |= written
    final = {f"test_{key}": value for key, value in metrics[role].items()} | timings[role]
    if role == "student":
        final |= {
            f"onnx_{key.removeprefix('onnx_')}": value for key, value in (metrics["onnx"] | timings["onnx"]).items()
        }
        final |= flat({"decision": metrics.get("decision", {})}, separator="_")
        for precision in SMALLER:
            if precision in metrics:
                final |= flat({precision: metrics[precision] | timings.get(precision, {})}, separator="_")
        final |= flat(metrics["differences"], separator="_")
    how, history = training.get("method"), folder / "history.csv"  # an imported network has none
    return RunRecord(
        key=digest,
        name=f"{role} {training['network']}" + (f" ({how})" if role == "student" else ""),
        tags={"gkd.role": role, "gkd.digest": digest, "gkd.data": training["data_sha256"]}
        | ({"gkd.weights": training["weights_digest"]} if "weights_digest" in training else {})
        | ({"gkd.plugins": training["plugins"]} if "plugins" in training else {})
        | _checkout(folder / "run.json"),
        params=flat(facts),
        history=read_table(history) if history.exists() else [],
        metrics={k: float(v) for k, v in final.items() if isinstance(v, int | float) and not isinstance(v, bool)},
        artifacts={NETWORK: folder},
        token=token_of(folder),
    )


def token_of(folder: Path) -> str:
    """The token of the run that grew while the network in a folder was trained (see `live.py`); empty for none."""
    file = folder / "run.json"
    facts = read_json(file, "the folder") if file.exists() else {}
    return str(facts.get("mlflow", {}).get("token", ""))


def _with_deployment(record: RunRecord, manifest_digest: str, deploy: Path, report: Path, correct: Path) -> RunRecord:
    """The student's run belongs to one export of it, as its version does."""
    return replace(
        record,
        key=manifest_digest,
        tags=record.tags | {"gkd.manifest": manifest_digest},
        artifacts=record.artifacts | {DEPLOY: deploy, REPORT: report, GATE: correct},
    )
