"""Methods compared fairly: the same data, teacher, student, budget and seeds; only the method's name changes.

Not a step of the pipeline: it runs the distill step once a method and seed, and reads the test split of each student
once. What is done stays in `work`, so a comparison that was stopped goes on where it was, and one with more methods or
seeds trains only those.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components import distill
from gkd_core import methods as registry
from gkd_core.config import Params
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import PreparedData
from gkd_core.data.progress import progress
from gkd_core.errors import GkdError, unknown
from gkd_core.evaluation.comparison import Standing, standings
from gkd_core.evaluation.evaluate import predict
from gkd_core.evaluation.quality import top_k_correct
from gkd_core.export.manifest import code_sha256
from gkd_core.files import folder_digest, json_digest, read_json, whole_folder, write_bytes, write_json
from gkd_core.models.network import load_network
from gkd_core.report.forest import forest_plot
from gkd_core.training.device import choose_device

BATCH_SIZE = 250
DIGITS = 6
COLUMNS = ("teacher", "student", "method", "seed", "top1", "validation_top1", "schedule", "seconds")


def run(
    *,
    data: Path,
    teacher: Path,
    out: Path,
    work: Path,
    params: Params,
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    reference: str = "kd",
) -> dict[str, Any]:
    """Train a student by every method with every seed, and write the comparison to `out`.

    Args:
        data, teacher: folders of the prepare and the teacher step.
        out: see `conclude`.
        work: finished runs stay in `compare/` there, checkpoints beside.
        params: reads `student`, `train`, `distill` and `evaluate`; `distill.method` and `train.seed` are replaced.
        methods: names; none is every method there is.
        seeds: of the students; the data and the teacher are the same for all.
        reference: the method that the others are compared with, trained too if it is not among `methods`.
    Returns:
        As `conclude`.
    Raises:
        GkdError: an unknown method, doubled seeds, settings that would not be the same for all, or a run that failed.
    """
    chosen = list(dict.fromkeys([reference, *(methods or registry.METHODS)]))
    check(params, chosen, seeds)
    results = []
    with progress("compare", len(seeds) * len(chosen), unit="trainings") as advance:
        for seed in seeds:  # seed by seed: stopped half-way, whole seeds can be compared
            for method in chosen:
                results.append(contend(data, teacher, work, params, method, seed))
                advance(1)
    return conclude(results, out=out, reference=reference, inputs=[data, teacher, work])


def contend(data: Path, teacher: Path, work: Path, params: Params, method: str, seed: int) -> dict[str, Any]:
    """One method with one seed: trained and measured on the test split unless `work` has it already.

    Returns:
        A row for `conclude`.
    """
    prepared = PreparedData.open(data)
    one = _settings(params, method, seed)
    digest = json_digest(
        {
            "data_sha256": prepared.info.sha256,
            "teacher_digest": folder_digest(teacher),
            "code_sha256": code_sha256(),
            "configuration": one.digest("student", "train", "distill"),
        }
    )
    folder = work / "compare" / f"{method}-seed{seed}-{digest[:16]}"
    if not (folder / "result.json").exists():
        _train(data, teacher, folder, work, one, prepared)
    return read_json(folder / "result.json", "the finished run", keys=COLUMNS)


def conclude(
    results: Sequence[dict[str, Any]], *, out: Path, reference: str, inputs: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write comparison.json, comparison.md, comparison.svg and runs.csv to `out`.

    Args:
        results: one dict a training with the keys of COLUMNS; `top1` in [0, 1] on the same test images.
        out: appears whole or not at all.
        inputs: folders that `out` must not replace.
    Returns:
        {"teacher → student": [{"method", "seeds", "mean", "deviation", "difference"}, …]}, the best first.
    Raises:
        GkdError: there are no results.
    """
    if not results:
        raise GkdError("there is no finished training to compare: run some first")
    pairs: dict[str, list[Standing]] = {}
    for pair in sorted({_pair(result) for result in results}):
        accuracies: dict[str, dict[int, float]] = {}
        for result in results:
            if _pair(result) == pair:
                accuracies.setdefault(result["method"], {})[result["seed"]] = result["top1"]
        pairs[pair] = standings(accuracies, reference)
    found = {pair: [_rounded(asdict(standing)) for standing in rows] for pair, rows in pairs.items()}
    ordered = sorted(results, key=lambda result: (_pair(result), result["method"], result["seed"]))
    with whole_folder(out, list(inputs)) as folder:
        write_json(folder / "comparison.json", {"reference": reference, "pairs": found})
        write_bytes(folder / "comparison.md", "\n".join(markdown(p, r, reference) for p, r in pairs.items()).encode())
        write_bytes(folder / "comparison.svg", forest_plot(pairs, reference).encode())
        write_bytes(folder / "runs.csv", _csv(ordered).encode())
    return found


def markdown(pair: str, rows: Sequence[Standing], reference: str) -> str:
    """A table of one pair's standings, in percent and percentage points."""
    lines = [
        f"### {pair}",
        "",
        f"| method | seeds | top-1, mean ± sd | minus {reference}, with 95 % interval | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        spread = "" if row.deviation is None else f" ± {100 * row.deviation:.2f}"
        gap, verdict = "", "reference" if row.method == reference else "not compared"
        if row.difference is not None:
            gap = f"{100 * row.difference.mean:+.2f}"
            if row.difference.low is not None and row.difference.high is not None:
                gap += f" [{100 * row.difference.low:+.2f}, {100 * row.difference.high:+.2f}]"
            verdict = "not separable"
            if row.difference.separable:
                verdict = "better" if row.difference.mean > 0 else "worse"
        lines.append(f"| {row.method} | {len(row.seeds)} | {100 * row.mean:.2f}{spread} | {gap} | {verdict} |")
    return "\n".join([*lines, ""])


def check(params: Params, chosen: Sequence[str], seeds: Sequence[int]) -> None:
    """See that methods and seeds can be compared, before anything is trained.

    Raises:
        GkdError: an unknown method, doubled seeds, a wrong hyperparameter, or settings that would not be the same for
            all.
    """
    for method in chosen:
        if method not in registry.METHODS:
            raise GkdError(unknown("--methods: method", method, registry.METHODS))
    if not seeds or len(set(seeds)) < len(seeds):
        raise GkdError(f"--seeds names {list(seeds) or 'none'}: give different seeds, three or more for an interval")
    if min(seeds) < 0 or max(seeds) >= 2**32:
        raise GkdError(f"--seeds names {list(seeds)}: a seed is 0 or more and below 2^32")
    settings = params.distill
    if settings.arrangement != "single":
        raise GkdError(
            f"distill.arrangement is {settings.arrangement}, but a comparison of methods has one teacher: set it to "
            "single"
        )
    if settings.temperature is not None:
        raise GkdError(
            f"distill.temperature is {settings.temperature:g}, but a comparison gives every method its own: set it to "
            "null, and those you mean under distill.options"
        )
    for method in chosen:  # a wrong hyperparameter is told before the first training, not after the tenth
        registry.check_hyperparameters(method, _settings(params, method, seeds[0]).distill.hyperparameters())


def _settings(params: Params, method: str, seed: int) -> Params:
    return params.model_copy(
        update={
            "distill": params.distill.model_copy(
                update={
                    "method": method,
                    "options": {k: v for k, v in params.distill.options.items() if k == method},
                }
            ),
            "train": params.train.model_copy(update={"seed": seed}),
        }
    )


def _train(data: Path, teacher: Path, folder: Path, work: Path, params: Params, prepared: PreparedData) -> None:
    """One training and its accuracy on the test split, into `folder`."""
    facts = distill.run(data=data, teacher=teacher, out=folder / "student", work=work, params=params)
    network = load_network(folder / "student", prepared.info.classes)
    loader = Loader(
        prepared.test,
        batch_size=BATCH_SIZE,
        device=choose_device(params.evaluate.device, "evaluate.device"),
        shuffle=False,
        num_classes=len(prepared.info.classes),
    )
    logits = predict(network, loader, f"the student by {params.distill.method}")
    result = {
        "teacher": " + ".join(_names(teacher)),
        "student": network.spec.name,
        "method": params.distill.method,
        "seed": params.train.seed,
        "top1": round(float(top_k_correct(logits, prepared.test.labels, 1).mean()), DIGITS),
        "validation_top1": round(facts["validation_top1"], DIGITS),
        "schedule": facts["schedule"],
        "seconds": read_json(folder / "student" / "run.json", "the finished run", keys=["seconds"])["seconds"],
    }
    write_json(folder / "result.json", result)


def _names(teacher: Path) -> list[str]:
    facts = read_json(teacher / "teacher.json", "the teacher folder", keys=["networks"])
    return [
        read_json(teacher / name / "model.json", "the teacher", keys=["name"])["name"] for name in facts["networks"]
    ]


def _pair(result: dict[str, Any]) -> str:
    return f"{result['teacher']} → {result['student']}"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, DIGITS) if isinstance(value, float) else value


def _csv(results: Sequence[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    return stream.getvalue()
