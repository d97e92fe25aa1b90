"""Options that several commands share, how a command takes a group of them, and what every command ends with.

Options that belong together are a dataclass: a command takes it, the command line shows its fields.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from gkd_core.errors import GkdError

if TYPE_CHECKING:
    from gkd_core.config import Params

ParamsFile = Annotated[Path, typer.Option("--params", help="The configuration.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a parameter; repeatable.")
]
Data = Annotated[Path, typer.Option(help="Folder of `gkd prepare`.")]
Teacher = Annotated[Path, typer.Option(help="Folder of `gkd teacher`.")]
Student = Annotated[Path, typer.Option(help="Folder of `gkd distill`.")]
Baseline = Annotated[Path, typer.Option(help="Folder of `gkd distill --reference baseline`.")]
Kd = Annotated[Path, typer.Option(help="Folder of `gkd distill --reference kd`.")]
Deploy = Annotated[Path, typer.Option(help="Folder of `gkd export`.")]
Report = Annotated[Path, typer.Option(help="Folder of `gkd evaluate`.")]
Registration = Annotated[Path, typer.Option(help="Folder of `gkd register`.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Work = Annotated[Path, typer.Option(help="Checkpoints live here.")]
PARAMS = Path("params.yaml")


@dataclass
class Networks:
    """What a run has trained, and what it exported."""

    teacher: Teacher = Path("teacher")
    baseline: Baseline = Path("baseline")
    kd: Kd = Path("kd")
    student: Student = Path("student")
    deploy: Deploy = Path("deploy")


@dataclass
class Configuration:
    """params.yaml, and what the command line changes in it."""

    params: ParamsFile = PARAMS
    overrides: Overrides = None

    def read(self) -> "Params":
        """Both together, checked.

        Raises:
            GkdError: something in it is wrong.
        """
        from gkd_core.config import load_params

        return load_params(self.params, self.overrides or [])


Parallelism = Annotated[int | None, typer.Option(min=1, help="Trainings of a sweep at a time; 4 unless given.")]


Contenders = Annotated[
    Path | None,
    typer.Option(help="With --pipeline sweep: YAML list of named settings, as for gkd compare, instead of methods."),
]


SpaceFile = Annotated[
    Path | None, typer.Option("--space", help="With --pipeline search: YAML of ranges and choices, as for gkd search.")
]


@dataclass
class Arguments:
    """A pipeline's arguments besides the configuration."""

    data_source: Annotated[str, typer.Option(help="Replaces data.source.")] = ""
    dvc_repo: Annotated[str, typer.Option(help="Git repository whose DVC-tracked data is read.")] = ""
    dvc_path: Annotated[str, typer.Option(help="What to fetch from it.")] = ""
    dvc_rev: Annotated[str, typer.Option(help="Tag, branch or commit of it; the newest without.")] = ""
    mlflow: Annotated[str, typer.Option(help="Address of the MLflow server; replaces tracking.uri.")] = ""
    contenders: Contenders = None
    space: SpaceFile = None
    arguments: Annotated[
        list[str] | None,
        typer.Option(
            "--argument",
            metavar="NAME=VALUE",
            help="Another argument, in YAML (sweep: seeds=[0,1,2]; search: workers=8).",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Those that are given, by name.

        Raises:
            GkdError: one has no value, or one that is no YAML, or there is no such file.
        """
        named = {name: value for name, value in vars(self).items() if name != "arguments" and value}
        for name, file in (("contenders", self.contenders), ("space", self.space)):
            if file is not None:
                from gkd_core.config.load import read_text

                named[name] = read_text(file, f"--{name}")
        return named | dict(_argument(text) for text in self.arguments or [])


def _argument(text: str) -> tuple[str, Any]:
    import yaml

    from gkd_core.yaml_text import load_yaml

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise GkdError(f"--argument {text!r} has no value: write --argument name=value")
    try:
        content = load_yaml(value) if value else ""
    except yaml.YAMLError:
        raise GkdError(f"--argument {name}: {value!r} is not YAML; put quotes around text with signs in it") from None
    return name.strip(), content


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command for typer in which every parameter that is a dataclass is replaced by that dataclass's fields.

    The fields are annotated as parameters are, `Annotated[…, typer.Option(…)]`, and all have a default.
    """
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hints[name] for name in signature.parameters if dataclasses.is_dataclass(hints[name])}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        kinds = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kinds[field.name]
            )
            for field in dataclasses.fields(groups[name])
        ]

    def expanded(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        command(**given)

    expanded.__name__, expanded.__doc__ = command.__name__, command.__doc__
    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def comma_separated(text: str) -> list[str]:
    """The names in an option's value, those that are empty left out."""
    return [name.strip() for name in text.split(",") if name.strip()]


def whole_numbers(text: str, option: str, example: str) -> list[int]:
    """The numbers in an option's value.

    Args:
        option: its name, for the error.
        example: of a value that is right.
    Raises:
        GkdError: something between its commas is no whole number.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise GkdError(f"{option} is {text!r}: give whole numbers separated by commas, such as {example}") from None


def finish(summary: Any) -> None:
    """The last line on stdout: what was done, as JSON."""
    print(json.dumps(summary, default=str))
