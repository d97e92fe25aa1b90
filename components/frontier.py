"""Students by accuracy against what they cost on this machine: which one, for a limit of time and size?

The trainings are a comparison's (`components/compare.py`) and stay in `work` as those do; latency is measured anew.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.compare import run_trials, trained
from gkd_core.config import Params
from gkd_core.config.contenders import line_up
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError, refuse_doubled
from gkd_core.evaluation.comparison import check_seeds, write_runs
from gkd_core.evaluation.cost import hardware, measure_latency, parameter_count
from gkd_core.evaluation.frontier import Candidate, Frontier
from gkd_core.evaluation.standings import standings
from gkd_core.export.onnx import write_all
from gkd_core.files import folder_digest, refuse_to_replace, whole_folder
from gkd_core.models.macs import multiply_accumulates
from gkd_core.models.network import Network, load_network
from gkd_core.models.registry import refuse_unknown_name


def run(
    *,
    data: Path,
    teacher: Path,
    out: Path,
    work: Path,
    params: Params,
    students: Sequence[str] = (),
    contenders: Sequence[Any] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    max_latency_ms: float | None = None,
    max_mb: float | None = None,
) -> Frontier:
    """Train every student with every seed, measure what it costs, and write the frontier to `out`.

    Args:
        data, teacher: folders of the prepare and the teacher step.
        out: appears whole or not at all.
        work: as in a comparison, with which finished trainings are shared.
        params: what all have in common; `export` and `evaluate` say how latency is measured.
        students: names of networks, the short way to write contenders that differ by their student alone.
        contenders: see `gkd_core.config.contenders.line_up`, instead of students.
        seeds: of the students.
        max_latency_ms, max_mb: limits that the recommendation keeps to; None does not limit.
    Raises:
        GkdError: unknown networks, wrong settings, doubled networks or seeds, limits that nothing keeps, or a run that
            failed.
    """
    check_seeds(seeds, "--seeds")
    for option, limit in (("--max-latency-ms", max_latency_ms), ("--max-mb", max_mb)):
        if limit is not None and not 0 < limit < math.inf:
            raise GkdError(f"{option} is {limit:g}: give a number above 0, or leave it out")
    if bool(students) == (contenders is not None):
        raise GkdError("give either --students a,b,… or --contenders FILE: the students to choose from")
    refuse_doubled(students, "--students")
    for name in students:
        refuse_unknown_name(name, "--students: the network")
    entries = contenders or [{"name": name, "student": {"name": name}} for name in students]
    lined = line_up(params, contenders=entries, option="--")
    refuse_to_replace(out, [data, teacher], work, kind="frontier")  # before hours of training
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in run_trials(data, teacher, work, lined, seeds):
        rows.setdefault(row["name"], []).append(row)
    prepared = PreparedData.open(data)
    networks = {
        contender.name: load_network(
            trained(data, teacher, work, contender, seeds[0]) / "student", prepared.info.classes
        )
        for contender in lined
    }
    costs = _costs(networks, prepared, params)
    accuracies = {name: {row["seed"]: row["top1"] for row in each} for name, each in rows.items()}
    candidates = [Candidate.of(rows[row.name], row, costs[row.name]) for row in standings(accuracies, lined[0].name)]
    timed = hardware() | {"threads": params.evaluate.latency_threads, "runs": params.evaluate.latency_runs}
    made_of = {"data_sha256": prepared.info.sha256, "teacher_digest": folder_digest(teacher)}
    frontier = Frontier(candidates, max_latency_ms, max_mb, timed, **made_of)
    with whole_folder(out, [data, teacher], kind="frontier") as folder:
        frontier.save(folder)
        write_runs(folder / "runs.csv", [row for each in rows.values() for row in each])
    return frontier


def _costs(networks: Mapping[str, Network], prepared: PreparedData, params: Params) -> dict[str, dict[str, Any]]:
    """The last five attributes of `Candidate`, by contender."""
    info, settings = prepared.info, params.evaluate
    with tempfile.TemporaryDirectory(prefix="gkd-") as scratch:
        form, opset = params.export.input, params.export.opset
        models = write_all(networks, Path(scratch), info, input=form, opset=opset, called="contender {}")
        found: dict[str, dict[str, Any]] = {
            name: {
                "size_mb": models[name].stat().st_size / 1e6,
                "macs": multiply_accumulates(network, info.channels, info.image_size),
                "parameters": parameter_count(network),
            }
            for name, network in networks.items()
        }
        # Contenders with one network take the same time, whatever the clock says: it is measured once.
        first: dict[tuple[str, int], str] = {}
        alike = {name: first.setdefault((networks[name].name, cost["macs"]), name) for name, cost in found.items()}
        timed = {name: models[name] for name in first.values()}
        image = np.array(prepared.test.images[:1])
        latencies = measure_latency(timed, image, runs=settings.latency_runs, threads=settings.latency_threads)
    return {name: cost | latencies[alike[name]] for name, cost in found.items()}
