"""STEPS: the one table of the pipeline's steps. Everything that lists steps reads it.

The command line of single steps, `dvc.yaml` (`make dvc` writes it), the Kubeflow graph, the steps that a profile may
name, and the lists of `evaluate`, `register` and `gkd pipeline run`. To add a step: a row here, `run` in
`components/NAME.py`, its typed component (and its line in `settings`) in `pipelines/kubeflow/components.py`, then
`make dvc`; the tests say which of them is missing.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkd_core.config import Params


DVCLIVE = "dvclive"  # as DVCLive calls its folder


@dataclass(frozen=True)
class Step:
    """One step: folders in, a folder out.

    Attributes:
        name: of the DVC stage and the Kubeflow task.
        help: what it does, in one sentence.
        inputs: folders it reads, by the name that the step which makes one gives it (`output`). They are the arguments
            of `run`, too.
        output: the folder it writes.
        sections: parameter sections its result depends on.
        command: of `gkd`, and the module of `components`; the step's name unless given.
        fixed: arguments of `run` that make this step of a module which serves several.
        trains: it has a work folder for checkpoints, and a cluster's accelerators.
        shows: it is also given SHOWN, what a report and a registered run tell of the other steps' parameters.
        cached: a cluster may take what it made before.
        in_git: its folder is small and for people: DVC does not keep it in its cache, git does.
        methods: of the parameters, the distillation methods it trains with; their source counts as the step's.
        schemes: of the parameters, who teaches whom there; their source counts likewise.
        parts: what `output` holds, where DVC does not keep it as one: paths below it by kind, "out", "plot" or "metric"
            (the last two are for git).
        sources: packages its result depends on, beside what its module imports.
    """

    name: str
    help: str
    inputs: tuple[str, ...]
    output: str
    sections: tuple[str, ...]
    command: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    trains: bool = False
    shows: bool = False
    cached: bool = True
    in_git: bool = False
    methods: Callable[["Params"], tuple[str, ...]] = lambda params: ()
    schemes: Callable[["Params"], tuple[str, ...]] = lambda params: ()
    parts: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """Its command, and its module in `components`."""
        return self.command or self.name

    @property
    def reference(self) -> str | None:
        """What its command is told to train instead of the method: "baseline", "kd" or None."""
        return self.fixed.get("reference")

    @property
    def dvclive(self) -> str | None:
        """The folder for its curves under DVC; None where nothing is trained."""
        return f"{DVCLIVE}/{self.output}" if self.trains else None

    @property
    def line(self) -> str:
        """Its command without folders.

        >>> STEP["kd"].line
        'gkd distill --reference kd'
        """
        return f"gkd {self.word}" + (f" --reference {self.reference}" if self.reference else "")

    def run(
        self, *, out: Path, work: Path, params: "Params", dvclive: Path | None = None, **folders: Path | None
    ) -> dict[str, Any]:
        """Run it, whoever asks: DVC, a person, a task of Kubeflow.

        Args:
            out: folder to write.
            work: where a training keeps its checkpoints.
            params: the sections it reads.
            dvclive: of a training, where its curves go for DVC.
            folders: its inputs by name.
        Returns:
            What the step's `run` returns.
        """
        run: Callable[..., dict[str, Any]] = importlib.import_module(f"components.{self.word}").run
        where = {"work": work, "dvclive": dvclive} if self.trains else {}
        return run(**{**self.fixed, **folders}, out=out, params=params, **where)


def _of_teacher(params: "Params") -> tuple[str, ...]:
    assistants = params.teacher.assistants
    return ("ce", params.teacher.assistant_distill.method) if assistants else ("ce",)


def _of_labels_or_one_teacher(params: "Params") -> tuple[str, ...]:
    from gkd_core.schemes import DEFAULT

    return (DEFAULT,)


def _of_plain_kd(params: "Params") -> tuple[str, ...]:
    from gkd_core.schemes import mean_of_teachers

    return (mean_of_teachers(len(params.teacher.members) or 1),)


STEPS = (
    Step(
        name="prepare",
        help="Read the images, split them, and write the prepared format.",
        inputs=(),
        output="data",
        sections=("data",),
    ),
    Step(
        name="teacher",
        help="Train the teacher, or check and import `teacher.source`.",
        inputs=("data",),
        output="teacher",
        sections=("teacher",),
        trains=True,
        methods=_of_teacher,
        schemes=_of_labels_or_one_teacher,
    ),
    Step(
        name="baseline",
        help="Train the student alone on the same budget.",
        inputs=("data",),
        output="baseline",
        sections=("student", "train", "references"),
        command="distill",
        fixed={"reference": "baseline", "teacher": None},
        trains=True,
        methods=lambda params: ("ce",),
        schemes=_of_labels_or_one_teacher,
    ),
    Step(
        name="kd",
        help="Train the student by plain soft labels on the same budget.",
        inputs=("data", "teacher"),
        output="kd",
        sections=("student", "train", "references"),
        command="distill",
        fixed={"reference": "kd"},
        trains=True,
        methods=lambda params: ("kd",),
        schemes=_of_plain_kd,
    ),
    Step(
        name="distill",
        help="Train the student by `distill.method`, or one of the references it is compared with.",
        inputs=("data", "teacher"),
        output="student",
        sections=("student", "train", "distill"),
        trains=True,
        methods=lambda params: ("ce", params.distill.method),
        schemes=lambda params: (params.distill.scheme,),
    ),
    Step(
        name="export",
        help="Package the student as ONNX, check it against torch, and write its manifest.",
        inputs=("data", "teacher", "student"),
        output="deploy",
        sections=("export", "decide"),
        sources=("gkd_core", "components", "pipelines"),  # the manifest names the digest of all of them
    ),
    Step(
        name="evaluate",
        help="Measure all networks and the final ONNX on the test split, and write the report.",
        inputs=("data", "teacher", "baseline", "kd", "student", "deploy"),
        output="report",
        sections=("evaluate", "decide"),
        shows=True,
        parts={
            "predictions.npy": "out",
            "report.html": "out",
            "timings.json": "out",
            "pictures": "out",
            "plots": "plot",
            "metrics.json": "metric",
        },
    ),
    Step(
        name="register",
        help="Log the runs in MLflow, register the student as challenger, and let the gate decide on champion.",
        inputs=("teacher", "baseline", "kd", "student", "deploy", "report"),
        output="registration",
        sections=("gate", "tracking"),
        shows=True,
        cached=False,  # the registry may have changed though nothing here did
        in_git=True,
    ),
)
STEP = {step.name: step for step in STEPS}
MAKER = {step.output: step for step in STEPS}
REFERENCES = tuple(step.reference for step in STEPS if step.reference is not None)
SHOWN = ("data", "teacher", "student", "distill", "train", "references", "export", "decide", "evaluate")


def divide(params: "Params") -> dict[str, dict[str, Any]]:
    """The sections of the parameters by step, as JSON content.

    A step that is given no more than it reads runs again only when that changed: another method trains no teacher
    anew, neither under DVC nor from a cluster's cache. Beyond `sections`: what a report shows, and the tracking store's
    address for a teacher, or for weights to start from, that come from there; and the plugins that have to be imported.
    """
    from gkd_core.plugins import modules_of

    content = params.model_dump(mode="json")
    # Steps read each other's networks, by names that only a plugin knows; the first reads none.
    loaded = sorted({*params.plugins, *modules_of(params.names(*content))})
    given = {}
    for step in STEPS:
        wanted = {*step.sections, *(SHOWN if step.shows else ())}
        if any(address.startswith("models:/") for address in addresses(params, step).values()):
            wanted.add("tracking")
        given[step.name] = {name: section for name, section in content.items() if name in wanted}
        if loaded and step.inputs:
            given[step.name]["plugins"] = loaded
    return given


def addresses(params: "Params", step: Step) -> dict[str, str]:
    """What a step reads beside its folders, by the parameter that names it: networks to import or to start from (files,
    folders, `models:/…`, published names), and what was measured elsewhere.
    """
    teacher, student = params.teacher, params.student
    members = {f"teacher.members.{place}.weights": member.weights for place, member in enumerate(teacher.members)}
    by_section = {
        "teacher": {"teacher.source": teacher.source, "teacher.weights": teacher.weights, **members},
        "student": {"student.weights": student.weights},
        "evaluate": {"evaluate.frontier": params.evaluate.frontier},
        "gate": {"gate.deploy_bench": params.gate.deploy_bench},
    }
    if params.decide is not None and step.name == "evaluate":  # export chooses nothing by it
        by_section["decide"] = {"decide.unknown": params.decide.unknown}
    named = (item for section in step.sections for item in by_section.get(section, {}).items())
    return {name: address for name, address in named if address is not None}
