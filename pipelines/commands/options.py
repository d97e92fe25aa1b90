"""Options that several commands share, and what every command ends with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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


def finish(summary: Any) -> None:
    """The last line on stdout: what was done, as JSON."""
    print(json.dumps(summary, default=str))
