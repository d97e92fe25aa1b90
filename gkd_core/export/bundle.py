"""A folder with all that is needed to serve a student: Triton repository, manifests for clusters, README, model card.

The same inputs give the same bytes: nothing in it depends on the clock or the machine.
"""

import csv
import inspect
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gkd_core import __version__, plugins, schemes
from gkd_core.data import images
from gkd_core.data.prepared import DatasetInfo, PreparedData
from gkd_core.errors import GkdError
from gkd_core.export.manifest import (
    CHANNELS,
    OPTIONAL,
    PIXELS_FORM,
    PIXELS_INPUT,
    PIXELS_SUFFIX,
    SMALLER,
    code_sha256,
    decision_of,
    kept_pixels,
    kept_precisions,
    model_entry,
    read_manifest,
    refuse_other_model,
)
from gkd_core.export.render import render
from gkd_core.export.web_page import write_page
from gkd_core.files import (
    Shape,
    expect_shape,
    file_digest,
    refuse_to_replace,
    whole_folder,
    write_bytes,
    write_json,
)
from gkd_core.methods import METHODS, hyperparameters
from gkd_core.records import read_card_metrics, read_training, read_version
from gkd_core.redact import address_with_secret, redact
from gkd_core.report.findings import ROLES, percent_level, verdicts
from gkd_core.yaml_text import dump_yaml

FORMAT = 1
MAX_BATCH_SIZE = 64  # Triton gathers up to this many images into one run
MAX_BATCH_PICTURES = 8  # the same of pictures of any size, which may have tens of megabytes each
QUEUE_DELAY_US = 1000  # and waits this long for them
DRAIN_SECONDS = 5  # a pod that is told to stop is sent requests for so long, until every proxy of the cluster knows
KSERVE_TIMEOUT_SECONDS = (
    20  # and then answers: 5 + 20 + 1 fit into a pod's 30 seconds, which Knative lets nobody change
)
KUBERNETES = ("kustomization", "deployment", "service", "autoscaler", "disruption-budget", "service-monitor")
DRIFT = "prometheus-rule"  # beside those, where the manifest says what drift is measured against
WORST = 3
LONGEST_NAME = 63  # a DNS label
LONGEST_SERVICE = LONGEST_NAME - len("-predictor")  # which KServe appends, and makes a host name of
NAME = r"[a-z]([-a-z0-9]*[a-z0-9])?"
PICTURES = "pictures.py"  # a copy of `gkd_core.data.images`, so that whoever has the bundle reads pictures as we do
WORST_TABLE = "plots/per_class.csv"
TRAINED: Shape = {"epochs": int, "selected_epoch": int, "seed": int, "hyperparameters": dict}
# What the card tells of a smaller file, as the manifest has it.
JUDGED: dict[str, Shape] = {
    "int8": {
        "calibration": str,
        "calibration_images": int,
        "validation": {"images": int, "agreement": float, "top1": float, "top1_fp32": float},
    },
    "fp16": {"validation": {"images": int, "max_abs": float}},
}
# Environment variable, Kubernetes secret, key; the names are those of the shipped pipeline profiles.
SECRETS = (
    ("MLFLOW_TRACKING_URI", "gkd-mlflow", "uri"),
    ("MLFLOW_TRACKING_USERNAME", "gkd-mlflow", "username"),
    ("MLFLOW_TRACKING_PASSWORD", "gkd-mlflow", "password"),
    ("MLFLOW_TRACKING_TOKEN", "gkd-mlflow", "token"),
    ("MLFLOW_S3_ENDPOINT_URL", "gkd-object-storage", "endpoint"),
    ("AWS_ACCESS_KEY_ID", "gkd-object-storage", "access_key"),
    ("AWS_SECRET_ACCESS_KEY", "gkd-object-storage", "secret_key"),
    ("GKD_TOKEN", "gkd-server", "token"),  # what the server wants from its callers
)


def write_bundle(
    out: Path,
    *,
    data: Path,
    student: Path,
    deploy: Path,
    report: Path,
    registration: Path | None = None,
    name: str | None = None,
    storage_uri: str | None = None,
    registry_uri: str | None = None,
    service_account: str | None = None,
    precision: str = "fp32",
    canary: int | None = None,
    web: Mapping[str, bytes] | None = None,
    image: str,
) -> dict[str, Any]:
    """Write the bundle; `out` appears whole or not at all.

    Args:
        data, student, deploy, report: folders of the steps; of data only dataset.json's facts are used.
        registration: folder of the register step; gives the name and the registry URI where none is given.
        name: of the model on the servers, a DNS label; None takes the registered model's, else `gkd-student`.
        storage_uri: where triton/'s content will lie for KServe; or
        registry_uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, which gkd's own server takes from MLflow. With
            neither and no registration there is no KServe file, and without the registry no `kubernetes/` either.
        service_account: the Kubernetes service account that KServe's pods run as, whose secrets open the storage.
        precision: of the file that the servers take.
        canary: percent of the requests, 1 to 99, that KServe sends to this model beside the one it serves already; None
            is all of them. Nothing is written for a cluster without KServe then, which would not share them.
        web: what `gkd_core.export.web_runtime.read_runtime` gave, for a page that answers in the browser; None for no
            page. What Node measures of it stands in README.md, which other runs then write otherwise.
        image: container image of gkd's server.
    Returns:
        Content of bundle.json with `path`.
    Raises:
        GkdError: the folders do not belong together or are not as their steps left them, the precision is not there,
            a name or URI is not valid, a canary that would not be one.
    """
    inputs = [data, student, deploy, report, registration]
    refuse_to_replace(out, inputs, kind="bundle", option="OUT")
    manifest = read_manifest(deploy)
    chosen = model_entry(manifest, precision, f"the deploy folder {deploy}")
    info = PreparedData.open(data, check=False).info
    training, metrics = _checked(manifest, info, data=data, student=student, deploy=deploy, report=report)
    version = _registered(registration, deploy) if registration is not None else None
    if storage_uri is None and registry_uri is None and version is not None:
        registry_uri = f"models:/{version['name']}/{version['version']}"
    _check_uris(storage_uri, registry_uri)
    if not re.fullmatch(r"[\w./:@-]+", image, re.ASCII):
        raise GkdError(
            f"--image {redact(image)!r} is no container image's name: give REPOSITORY:TAG or REPOSITORY@sha256:DIGEST"
        )
    name = _name(name, version, for_kserve=bool(storage_uri or registry_uri))
    if service_account is not None and not (storage_uri or registry_uri):
        raise GkdError(
            "--service-account is for KServe, whose manifest is made for a registered version, --storage-uri or "
            "--registry-uri: give one of them"
        )
    if service_account is not None and not re.fullmatch(NAME, service_account):
        raise GkdError(f"--service-account {service_account!r} is no name of a Kubernetes service account")
    if canary is not None:
        _check_canary(canary, storage_uri, registry_uri)
    lineage = _lineage(manifest, chosen, precision)
    any_size = kept_pixels(manifest)
    confidence = metrics["data"]["confidence"]
    facts = {
        "name": name,
        "manifest": manifest,
        "model": manifest["model"],
        "classes": manifest["classes"],
        "chosen": chosen,
        "precision": precision,
        "precision_option": "" if precision == "fp32" else f" --precision {precision}",
        "any_size": any_size,
        "pixels": any_size.get(precision),
        "pixels_name": name + PIXELS_SUFFIX,
        "smaller": {p: manifest[p] for p in kept_precisions(manifest)},
        "dropped": [
            f"There is no {p} file: {manifest[p]['reason']}."
            for p in SMALLER
            if isinstance(manifest.get(p), dict) and not manifest[p].get("kept") and "reason" in manifest[p]
        ],
        "info": info,
        "crop_option": "" if info.crop is None else f', crop="{info.crop}"',
        "training": training,
        "hyperparameters": _hyperparameters(training, manifest),
        "method": METHODS.get(training["method"]) or {"teacher": bool(training["teacher_digest"])},
        "metrics": metrics,
        "level": percent_level(confidence),
        "rows": _rows(metrics, precision),
        "ece": metrics["student" if precision == "fp32" else precision]["ece"],
        "gains": [f"{gain['points']} {gain['headline']}; {gain['detail']}" for gain in verdicts(metrics, confidence)],
        "worst": _worst(report / WORST_TABLE),
        "lineage": lineage,
        "image": image,
        "storage_uri": storage_uri,
        "registry_uri": registry_uri,
        "service_account": service_account,
        "canary": canary,
        "secrets": SECRETS,
        "has_reference": "reference" in manifest,
        **_decided(manifest, metrics, precision),
        "max_batch_size": MAX_BATCH_SIZE,
        "queue_delay_us": QUEUE_DELAY_US,
        "drain_seconds": DRAIN_SECONDS,
        "kserve_timeout_seconds": KSERVE_TIMEOUT_SECONDS,
        "header": _header(name, training, metrics, precision),
        "web": None,
    }
    with whole_folder(out, inputs, kind="bundle", option="OUT") as folder:
        entries = [manifest["model"], *(manifest[p] for p in kept_precisions(manifest)), *any_size.values()]
        for file in ["manifest.json", *(Path(entry["file"]).name for entry in entries)]:
            shutil.copyfile(deploy / file, folder / file)
        _triton(folder / "triton" / name, deploy / Path(chosen["file"]).name, facts)
        if precision in any_size:
            found = any_size[precision]
            tensor = {"input": PIXELS_FORM, "input_name": PIXELS_INPUT, "input_shape": [-1, -1, CHANNELS]}
            other: dict[str, Any] = {
                "name": name + PIXELS_SUFFIX,
                "model": {**manifest["model"], **tensor},
                "max_batch_size": MAX_BATCH_PICTURES,
                "lineage": _lineage(manifest, found, precision),
            }
            _triton(folder / "triton" / other["name"], deploy / found["file"], {**facts, **other})
        shutil.copyfile(images.__file__, folder / PICTURES)
        if web is not None:
            facts["web"] = write_page(
                folder / "web",
                name=name,
                model=folder / Path(chosen["file"]).name,
                manifest=manifest,
                entry=chosen,
                precision=precision,
                crop=info.crop or "center",
                runtime=web,
            )
        render("README.md.j2", folder / "README.md", facts)
        render("MODEL_CARD.md.j2", folder / "MODEL_CARD.md", facts)
        if storage_uri or registry_uri:
            (folder / "kserve").mkdir()
            render("inference-service.yaml.j2", folder / "kserve" / "inference-service.yaml", facts)
        if registry_uri and canary is None:
            (folder / "kubernetes").mkdir()
            for file in (*KUBERNETES, *([DRIFT] if "reference" in manifest else [])):
                render(f"{file}.yaml.j2", folder / "kubernetes" / f"{file}.yaml", facts)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        bundle = {
            "format": FORMAT,
            "gkd_version": __version__,
            "name": name,
            "precision": precision,
            "files": {path.relative_to(folder).as_posix(): file_digest(path) for path in files},
        }
        write_json(folder / "bundle.json", bundle)
    return {"path": str(out), **bundle}


def _triton(folder: Path, model: Path, facts: dict[str, Any]) -> None:
    """One model of a Triton repository: its file, its description, its labels."""
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(model, folder / "1" / "model.onnx")
    render("config.pbtxt.j2", folder / "config.pbtxt", facts)
    labels = "".join(f"{' '.join(label.split())}\n" for label in facts["classes"])
    write_bytes(folder / "labels.txt", labels.encode())


def _checked(
    manifest: dict[str, Any], info: DatasetInfo, *, data: Path, student: Path, deploy: Path, report: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """training.json and metrics.json, once it is sure that all folders speak of one model."""
    training = read_training(student, "student")
    if not training["trained"]:
        raise GkdError(f"{student} holds no trained student: run `gkd distill`, then the steps after it")
    refuse_other_model(manifest, deploy, student=student, data=data, data_sha256=info.sha256, classes=info.classes)
    expect_shape(student / "training.json", training, TRAINED)
    kept = kept_precisions(manifest)
    expect_shape(deploy / "manifest.json", manifest, {precision: JUDGED[precision] for precision in kept})
    metrics = read_card_metrics(report, kept)
    if metrics["digests"]["manifest"] != file_digest(deploy / "manifest.json"):
        raise GkdError(f"{report} measures another model than the one in {deploy}: run `gkd evaluate` again")
    return training, metrics


def _registered(registration: Path, deploy: Path) -> dict[str, Any]:
    version = read_version(registration)
    if version["manifest"] != file_digest(deploy / "manifest.json"):
        raise GkdError(
            f"{registration} registered another model than the one in {deploy}: run `gkd register` again, or pass "
            "--no-registration"
        )
    return version


def _check_uris(storage_uri: str | None, registry_uri: str | None) -> None:
    if storage_uri is not None and registry_uri is not None:
        raise GkdError(
            "--storage-uri and --registry-uri are both given, KServe takes the model from one place: give one"
        )
    storage = "SCHEME://PLACE (s3://bucket/path, pvc://claim/path, …)"
    registry = "models:/NAME@ALIAS or models:/NAME/VERSION"
    for option, uri, pattern, form in (
        ("--storage-uri", storage_uri, r"[a-z][a-z0-9+.-]*://[^\s@]+", storage),
        ("--registry-uri", registry_uri, r"models:/[^/@:\r\n]+(@[^/@\s]+|/\d+)", registry),
    ):
        if uri is None:
            continue
        if secret := address_with_secret(uri):
            raise GkdError(
                f"{option} holds a password or a token ({secret}), which would stand in the bundle: give the address "
                "without credentials, those belong into a Kubernetes secret"
            )
        if not re.fullmatch(pattern, uri):
            raise GkdError(f"{option} {redact(uri)!r} is not of the form {form}")


def _check_canary(percent: int, storage_uri: str | None, registry_uri: str | None) -> None:
    if not 1 <= percent <= 99:
        raise GkdError(
            f"--canary {percent} is no part of the requests: give 1 to 99 percent, or leave it out for all of them"
        )
    if storage_uri is None and registry_uri is None:
        raise GkdError(
            "--canary is for KServe, whose manifest is made for a registered version, --storage-uri or --registry-uri: "
            "give one of them"
        )
    if registry_uri is not None and "@" in registry_uri:
        raise GkdError(
            f"--canary {percent} is one version beside another, and {registry_uri!r} is whichever version the alias "
            "names, in old pods too: give --registry-uri models:/NAME/VERSION"
        )


def _name(name: str | None, version: dict[str, Any] | None, *, for_kserve: bool) -> str:
    longest = LONGEST_SERVICE if for_kserve else LONGEST_NAME
    if name is None:
        made = re.sub(r"[^a-z0-9]+", "-", (version["name"] if version else "gkd-student").lower()).strip("-")
        made = made[:LONGEST_SERVICE].rstrip("-")
        name = made if re.fullmatch(NAME, made) else "gkd-student"
    if not re.fullmatch(NAME, name) or len(name) > longest:
        why = ", since KServe appends -predictor" if for_kserve else ""
        raise GkdError(
            f"--name {name!r} cannot be a service's name: up to {longest} small letters, digits and hyphens{why}, a "
            "letter first"
        )
    return name


def _hyperparameters(training: dict[str, Any], manifest: dict[str, Any]) -> str:
    """What the method worked with: the values that were given, and its defaults while the sources made the model."""
    given = {name: value for name, value in training["hyperparameters"].items() if value is not None}
    method, scheme = METHODS.get(training["method"]), training.get("scheme", schemes.DEFAULT)
    if method is None or scheme not in schemes.names() or schemes.get(scheme).has_own_loss:
        return _listed(given)
    plugin = plugins.lineage([("method", training["method"])])
    if manifest["code_sha256"] != code_sha256() or plugin not in training.get("plugins", ""):  # perhaps other defaults
        return "; ".join(part for part in (_listed(given), "the others are the method's defaults") if part)
    known = {name: p.default for name, p in hyperparameters(training["method"]).items()}
    values = {name: value for name, value in known.items() if value not in (None, inspect.Parameter.empty)}
    presets = getattr(inspect.getmodule(method.load()), "PRESETS", {})
    chosen = given.get("preset", values.get("preset"))
    values = {**values, **(presets.get(chosen, {}) if isinstance(chosen, str) else {}), **given}
    return _listed(values)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
    )


def _rows(metrics: dict[str, Any], precision: str) -> list[tuple[str, dict[str, Any]]]:
    """What was measured on test by network; the file that is served stands last where it is not the float32 one."""
    rows = [(label, metrics[role]) for role, label in ROLES.items() if role in metrics]
    return rows if precision == "fp32" else [*rows, (f"student in {precision}, as served here", metrics[precision])]


def _decided(manifest: dict[str, Any], metrics: dict[str, Any], precision: str) -> dict[str, Any]:
    """What the files tell of the decision of the file that is served, and what it was measured to be on test."""
    decision = decision_of(manifest, precision)
    if decision is None:
        return {"decision": None, "decides": [], "decided": {}}
    measured = (metrics if precision == "fp32" else metrics[precision]).get("decision", {})
    return {"decision": decision, "decides": list(decision.words()), "decided": measured}


def _lineage(manifest: dict[str, Any], chosen: dict[str, Any], precision: str) -> dict[str, str]:
    keys = ("data_sha256", "teacher_digest", "student_digest", "config_digest", *OPTIONAL, "code_sha256")
    return {
        **{key: manifest[key] for key in keys if manifest.get(key)},
        "model_sha256": chosen["sha256"],
        "precision": precision,
    }


def _worst(table: Path) -> list[dict[str, Any]]:
    """The classes with the lowest recall below 1, three at most."""
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            found = [
                (float(row["recall"]), row["name"], int(row["support"]))
                for row in csv.DictReader(stream)
                if row["recall"] and row["name"] is not None
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise GkdError(f"{table} cannot be read ({error}): run `gkd evaluate` again") from None
    worst = sorted(row for row in found if row[0] < 1.0)[:WORST]
    return [{"name": name, "recall": recall, "support": support} for recall, name, support in worst]


def _header(name: str, training: dict[str, Any], metrics: dict[str, Any], precision: str) -> str:
    """The YAML header of a model card as model hubs read it; its numbers are those of the file that is served."""
    served = {"ece": metrics["student"]["ece"], **metrics["onnx" if precision == "fp32" else precision]}
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": metrics["data"]["source"], "type": metrics["data"]["source"], "split": "test"},
        "metrics": [
            {"type": "accuracy", "name": "top-1", "value": served["top1"]},
            {"type": "ece", "name": "expected calibration error", "value": served["ece"]},
        ],
    }
    header = {
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "knowledge-distillation", "onnx", training["method"], training["network"]],
        "model-index": [{"name": name, "results": [result]}],
    }
    return dump_yaml(header)
