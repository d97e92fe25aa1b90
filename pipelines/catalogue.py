"""Lists made from the code itself: methods and schemes with their hyperparameters, parameters with their meaning.

`gkd methods` and `gkd params` show them, and the docs' pages are made from them (`make docs`).
"""

import inspect
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.table import Table

from gkd_core import schemes
from gkd_core.config import Params
from gkd_core.methods import METHODS, hyperparameters
from pipelines.summary import console

LIMITS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


def method_rows() -> list[dict[str, Any]]:
    """One row a method: name, kind, summary, source, published, schedule, hyperparameters with defaults."""
    return [
        {
            "name": name,
            "kind": "method",
            "summary": method.summary,
            "source": method.source,
            "published": method.published,
            "schedule": method.schedule,
            "hyperparameters": {
                key: None if p.default is inspect.Parameter.empty else p.default
                for key, p in hyperparameters(name).items()
            },
        }
        for name, method in METHODS.items()
    ]


def scheme_rows() -> list[dict[str, Any]]:
    """One row a scheme: as a method's, and the methods that make sense inside, and parameters elsewhere."""
    return [
        {
            "name": name,
            "kind": "scheme",
            "summary": scheme.summary,
            "source": scheme.source,
            "published": scheme.published,
            "hyperparameters": scheme.options().model_dump(),
            "parameters": list(scheme.reads),
            "methods": scheme.methods,
        }
        for name, scheme in ((name, schemes.get(name)) for name in schemes.names())
    ]


def show_methods() -> None:
    """Print the methods and the schemes as tables."""
    table = Table()
    for heading in ("method", "what it does", "source", "hyperparameters"):
        table.add_column(heading)
    for row in method_rows():
        options = "\n".join(f"{k} = {v}" for k, v in row["hyperparameters"].items())
        source = row["source"] + ("" if row["published"] else "\n[yellow]reconstruction[/]")
        table.add_row(row["name"], row["summary"], source, options)
    console().print(table)
    table = Table()
    for heading in ("scheme", "who teaches whom", "source", "settings"):
        table.add_column(heading)
    for row in scheme_rows():
        source = row["source"] + ("" if row["published"] else "\n[yellow]reconstruction[/]")
        table.add_row(row["name"], row["summary"], source, "\n".join(_settings(row)))
    console().print(table)


def methods_markdown() -> str:
    """docs/methods.md."""
    lines = ["# Distillation methods", ""]
    lines += ["Made by `make docs` from the registries in `gkd_core/methods.py` and `gkd_core/schemes`.", ""]
    lines += ["| method | what it does | source | weight over time | hyperparameters |", "|---|---|---|---|---|"]
    for row in method_rows():
        options = "<br>".join(f"`{k}` = {v}" for k, v in row["hyperparameters"].items())
        source = row["source"] + ("" if row["published"] else " (reconstruction)")
        lines.append(f"| `{row['name']}` | {row['summary']} | {source} | {row['schedule']} | {options} |")
    lines += _gompertz_presets()
    lines += ["", "# Schemes", "", "Who teaches whom: `distill.scheme`, a choice beside the method. "]
    lines[-1] += "A method that makes no sense inside one is refused."
    lines += ["", "| scheme | what happens | source | settings | methods inside |", "|---|---|---|---|---|"]
    for row in scheme_rows():
        source = row["source"] + ("" if row["published"] else " (reconstruction)")
        settings = "<br>".join(f"`{setting}`" for setting in _settings(row))
        inside = "all" if len(row["methods"]) == len(METHODS) else ", ".join(row["methods"])
        lines.append(f"| `{row['name']}` | {row['summary']} | {source} | {settings} | {inside} |")
    return "\n".join(lines) + "\n"


def _gompertz_presets() -> list[str]:
    """The values behind `preset`, and which of them the paper leaves open."""
    from gkd_core.losses.gompertz import ASSUMED, PRESETS

    lines = [
        "",
        "## Presets of gompertz",
        "",
        "An option that is None takes the preset's value. `paper` is the paper's",
    ]
    lines[-1] += (
        " literal form; what it does not give is assumed. Assumed besides: the curve's b = 2 and c = 7 / epochs,"
    )
    lines[-1] += (
        " and a trained 1×1 adapter on the student's side where channels differ. `tuned` makes the feature term"
    )
    lines[-1] += " scale-free and puts τ² on the soft labels."
    lines += ["", "| option | paper | tuned | given by the paper |", "|---|---|---|---|"]
    for name, value in PRESETS["paper"].items():
        lines.append(f"| `{name}` | {value} | {PRESETS['tuned'][name]} | {'assumed' if name in ASSUMED else 'yes'} |")
    return lines


def _settings(row: dict[str, Any]) -> list[str]:
    """A scheme's parameters by their full names, with the defaults of its own."""
    own = [f"distill.scheme_options.{row['name']}.{k} = {v}" for k, v in row["hyperparameters"].items()]
    return [*own, *row["parameters"]]


def parameter_rows(model: type[BaseModel] = Params, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(name, type, default, meaning) of every field, sections flattened to dotted names."""
    rows: list[tuple[str, str, str, str]] = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            rows += parameter_rows(annotation, f"{prefix}{name}.")
        else:
            default = "" if field.default is PydanticUndefined else _shown(field.default)
            rows.append((prefix + name, _type(annotation, field), default, " ".join((field.description or "").split())))
        if inspect.isclass(each := next(iter(get_args(annotation)), None)) and issubclass(each, BaseModel):
            rows += parameter_rows(each, f"{prefix}{name}[].")  # a list of sections
    return rows


def show_parameters() -> None:
    """Print all parameters as a table."""
    table = Table()
    for heading in ("parameter", "type", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for row in parameter_rows():
        table.add_row(*row)
    console().print(table)


def parameters_markdown() -> str:
    """docs/parameters.md."""
    lines = ["# Parameters", "", "Every field of `params.yaml`; made by `make docs` from `gkd_core/config/schema.py`."]
    for section, field in Params.model_fields.items():
        model = field.annotation
        assert inspect.isclass(model)
        assert issubclass(model, BaseModel)
        lines += ["", f"## {section}", "", " ".join((model.__doc__ or "").split()), ""]
        lines += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        for name, kind, default, meaning in parameter_rows(model, f"{section}."):
            cells = (f"`{name}`", kind.replace("|", "\\|"), f"`{default}`", meaning.replace("|", "\\|"))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _type(annotation: Any, field: FieldInfo | None = None) -> str:
    """A short type with its limits, e.g. `int ≥ 1 or null`."""
    limits = [f"{LIMITS[type(m)]} {_limit(m)}" for m in (field.metadata if field else []) if type(m) in LIMITS]
    if str(get_origin(annotation)) == "typing.Literal":
        return " or ".join(str(a) for a in get_args(annotation))
    if hasattr(annotation, "__metadata__"):
        base, *metadata = get_args(annotation)
        inner = [m for extra in metadata for m in getattr(extra, "metadata", [extra])]
        limits += [f"{LIMITS[type(m)]} {_limit(m)}" for m in inner if type(m) in LIMITS]
        return " ".join([_type(base), *limits])
    if get_origin(annotation) in (list, dict):
        return f"{get_origin(annotation).__name__} of {' → '.join(_type(a) for a in get_args(annotation))}"
    if get_args(annotation):
        return " or ".join("null" if a is type(None) else _type(a) for a in get_args(annotation))
    return " ".join([getattr(annotation, "__name__", str(annotation)).removesuffix("Config"), *limits])


def _limit(marker: Any) -> str:
    return f"{next(getattr(marker, n) for n in ('ge', 'gt', 'le', 'lt') if hasattr(marker, n)):g}"
