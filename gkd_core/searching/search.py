"""The library's search: the best settings for a student by validation, in a notebook."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkd_core.config.load import params_of_sections
from gkd_core.config.schema import Params
from gkd_core.config.space import read_space
from gkd_core.errors import GkdError
from gkd_core.evaluation.comparison import check_seeds, common_params, expect_student, train_by
from gkd_core.files import json_digest
from gkd_core.methods import METHODS, is_method
from gkd_core.plugins import unknown_name

if TYPE_CHECKING:
    from gkd_core.data.prepared import PreparedData
    from gkd_core.models.network import Network
    from gkd_core.searching.findings import Findings
    from gkd_core.training.trainer import EpochHook


def search(
    student: "str | Callable[[int], Network]",
    teacher: "Network",
    data: "PreparedData",
    *,
    space: Mapping[str, Any],
    trials: int | None = 20,
    minutes: float | None = None,
    each: str | None = None,
    method: str = "gompertz",
    options: Mapping[str, dict[str, Any]] | None = None,
    seeds: Sequence[int] = (0,),
    sampler_seed: int = 0,
    prune: bool = True,
    storage: str | None = None,
    study: str | None = None,
    work: Path | str | None = None,
    **settings: Any,
) -> "Findings":
    """Search the best settings on the validation split; the test split is never opened.

    Args:
        student: a name as `create_model` takes it, or a function that makes an untrained student from a seed.
        teacher: frozen here.
        data: from `load_data`.
        space: parameter → {"low", "high", "log", "step", "when"}, {"choices", "when"} or one value; parameters by the
            keys that `--set` takes, in the sections distill, train and student (docs/searching.md).
        trials: settings to try, those of earlier calls included; None where `minutes` limits alone.
        minutes: no trial begins after so many.
        each: key of a parameter with choices; each choice is a study of its own.
        method: where the space does not say one.
        options: hyperparameters by method that the space does not name.
        seeds: of each setting's trainings; its value is the mean of their validation top-1.
        sampler_seed: of what is drawn.
        prune: stop trials that do worse than the median of the others.
        storage: address of a database that other workers reach too; without one a file in `work`, or memory.
        study: its name there; None makes one from what the trials depend on.
        work: folder for checkpoints and the trials: the same call again goes on where it was.
        settings: fields of `train` in params.yaml, the same for all.
    Returns:
        What was found: `.params` is the best configuration, `.best` its study, `.save(folder)` writes the report.
    Raises:
        GkdError: the space or an argument is wrong, or no trial was trained to its end.

    Example:
        >>> import gkd_core as gkd
        >>> data = gkd.load_data("digits", train_images=200)
        >>> teacher = gkd.create_model("resnet8", data=data)
        >>> space = {"train.learning_rate": {"low": 0.02, "high": 0.5, "log": True}}
        >>> found = gkd.search("resnet8", teacher, data, space=space, trials=1, method="kd", epochs=1, device="cpu")
        >>> 0.02 <= found.params["train"]["learning_rate"] <= 0.5
        True
    """
    from gkd_core.models.network import expect_network
    from gkd_core.searching.findings import Findings, Found
    from gkd_core.searching.study import Budget, open_study
    from gkd_core.training.trainer import refuse_options, weights_digest

    expect_network(teacher, "teacher")
    expect_student(student)
    given: object = seeds
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise GkdError(f"seeds is {seeds!r}: give a list")
    if not isinstance(space, Mapping) or not space:
        raise GkdError(f"space is {space!r}: give a dict, parameter → range, choices or value")
    if not is_method(method):
        raise GkdError(unknown_name("method", method, METHODS))
    for name, limit in (("trials", trials), ("minutes", minutes)):
        if limit is not None and not 0 < limit < math.inf:
            raise GkdError(f"{name} is {limit}: give a number above 0")
    if trials is None and minutes is None:
        raise GkdError("trials and minutes are both None: give one of them, for a search has no other end")
    check_seeds(seeds := list(seeds))
    refuse_options(settings, method)
    params = _with_method(common_params(student, data, options, settings), method)
    facts = {
        "data": data.info.sha256,
        "teacher": weights_digest(teacher),
        "student": "" if isinstance(student, str) else weights_digest(student(0)),
        "parameters": json_digest(params.model_dump(mode="json", exclude_unset=True)),
    }

    def train(one: Params, hook: "EpochHook") -> tuple[float, float]:
        _, result = train_by(one, student, teacher, data, work=work, on_epoch=hook)
        return float(result.facts["validation_top1"]), result.seconds

    budget, found = Budget(trials, minutes), []
    for title, part in read_space(space, params).studies(each, study).items():
        place = None if work is None else Path(work)
        opened = open_study(
            part,
            title=title,
            facts=facts,
            work=place,
            storage=storage,
            study=study,
            seeds=seeds,
            seed=sampler_seed,
            prune=prune,
        )
        opened.run(train, budget)
        found.append(Found.of(opened, title))
    return Findings(found, {"trials": trials, "seeds": seeds, "seed": sampler_seed, "prune": prune})


def _with_method(params: Params, method: str) -> Params:
    content = params.model_dump(mode="json", exclude_unset=True)
    content["distill"] = {"method": method} | content.get("distill", {})
    return params_of_sections(content)
