"""Lists made from the code itself: methods, schemes and their hyperparameters, parameters with their meaning, commands.

`gkd methods` and `gkd params` show them, and the docs' pages are made from them (`make docs`).
"""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from gkd_core import schemes
from gkd_core.config import Params
from gkd_core.config.recipes import RECIPES, Start
from gkd_core.data import own
from gkd_core.methods import METHODS, hyperparameters
from gkd_core.mistakes import section_of
from gkd_core.plugins import owner, registered
from pipelines.summary import console

METHODS_HEAD = ("method", "what it does", "source", "weight over time", "hyperparameters")
SCHEMES_HEAD = ("scheme", "what happens", "source", "settings", "methods inside")
PLUGINS_HEAD = ("name", "kind", "plugin", "options")
PARAMETERS_HEAD = ("parameter", "type", "default", "meaning")
FEW, MANY = 500, 50_000  # images to train on
PHOTO = 224  # their side in pixels
RECIPES_ABOUT = f"""\
What null means in `train` and `teacher.train`, by `recipe`, on images of {PHOTO} pixels; where the number of training
images decides, for {FEW:,} → for {MANY:,} of them. A field that is given overrides its recipe's; `gkd params
--effective` shows what a run would use."""
TYPES = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "object": "section", "null": "null"}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def method_rows(*, plugins: bool = True) -> list[dict[str, Any]]:
    """One row a method: name, kind, summary, source, published, schedule, hyperparameters with defaults; of a plugin's
    also its module.

    Args:
        plugins: with those of plugins.
    """
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
            **({"plugin": module} if module else {}),
        }
        for name, method, module in ((name, method, owner("method", name)) for name, method in METHODS.items())
        if plugins or module is None
    ]


def plugin_rows() -> list[dict[str, Any]]:
    """One row for each network and augmentation of a plugin: name, kind, its module, options with defaults."""
    networks = [{"name": name, "kind": "network", "plugin": module} for name, module in registered("network")]
    return networks + [
        {
            "name": name,
            "kind": "augmentation",
            "plugin": module,
            "options": {key: field.get_default() for key, field in own.options_model(name).model_fields.items()},
        }
        for name, module in registered("augmentation")
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
    """Print the methods and the schemes as tables, and what else plugins brought."""
    _show(METHODS_HEAD, _methods())
    _show(SCHEMES_HEAD, _schemes())
    if rows := plugin_rows():
        cells = ((f"`{row['name']}`", row["kind"], row["plugin"], _listed(row.get("options", {}))) for row in rows)
        _show(PLUGINS_HEAD, cells)


def methods_markdown() -> str:
    """docs/methods.md."""
    from gkd_core.losses.gompertz import ASSUMED, PRESETS
    from gkd_core.losses.term_scale import LARGEST_FACTOR, MOMENTUM

    presets = [
        (f"`{name}`", str(value), str(PRESETS["tuned"][name]), "assumed" if name in ASSUMED else "yes")
        for name, value in PRESETS["paper"].items()
    ]
    return f"""\
# Distillation methods

Made by `make docs` from the registries in `gkd_core/methods.py` and `gkd_core/schemes`.

{_markdown(METHODS_HEAD, _methods(plugins=False))}

The weights of `at` and `reviewkd` are the CIFAR-100 benchmark's, published for its networks' stages. Three families
have another last stage here, what their head pools: `wrn_*` after batch norm and ReLU instead of before, MobileNetV2
with 1280 channels instead of 160, ShuffleNetV2 with 1024 instead of 464. There the weights are a start, not the
benchmark's.

## Presets of gompertz

An option that is None takes the preset's value. `paper` is the paper's literal form; what it does not give is assumed.
Assumed besides: the curve's b = 2 and c = 7 / epochs; that the last stage of a transformer is its tokens; where
channels differ, a trained 1×1 adapter on the student's side for the feature loss, and a fixed semi-orthogonal map of
the teacher's gradient for the gradient loss. `tuned` makes the feature term scale-free and puts τ² on the soft labels.

{_markdown(("option", "paper", "tuned", "given by the paper"), presets)}

Options that go beyond the paper:

- `stages`: the feature term is the mean over the `last` stage, `all`, or a list of the student's, `[1, 3]`, counted
  from 1 at the shallow end. Stages are paired from the deepest backwards, as by `at` and `reviewkd`; where one network
  has more, its shallowest have no partner: `all` leaves them out, a list that names one is refused. Each pair has an
  adapter of its own where channels differ. Shallow stages have many atoms: take solver `quantile` or `sliced`, which
  sort them; `sinkhorn` and `exact` compare each with each. The gradient term stays the last stage's.
- `soft_labels`: `kl`; `standardised`, as in `logit-standardisation` (at least three classes); `dist`, inter plus intra
  of `dist` (no `train.balance: weights`); `decoupled`, TCKD + `weight_non_target`·NCKD of `dkd` (no mixup, cutmix or
  images without a label). All read `temperature`, and `scale_tau2` multiplies each by τ². The strengths their authors
  chose for CIFAR-100, all with τ²: `standardised` `weight_kd` 9 at τ = 2, `dist` `weight_kd` 2, `decoupled`
  `weight_kd` 1.
- `term_scale: running_mean` multiplies each term, before its weight, by m_ce / m_term, running means of the values with
  momentum {MOMENTUM:g}, a factor of at most {LARGEST_FACTOR:g}: with a weight of 1 it is as large as cross-entropy, and
  `scale_tau2` cancels. In the log the terms stand as they are added, scaled and weighted.

The curve is a choice beside the method: `distill.schedule` and `distill.curve` (`b`, `c`, or `inflection` and
`saturation`; `schedule: constant` is `curve.beta_max` throughout). `configs/contenders/` has files that compare all of
these: `gompertz-options.yaml` the options above, `ablation-gompertz.yaml` the rest.

# Schemes

Who teaches whom: `distill.scheme`, a choice beside the method. A method that makes no sense inside one is refused.

{_markdown(SCHEMES_HEAD, _schemes(plugins=False))}
"""


def _methods(*, plugins: bool = True) -> Iterator[Sequence[str]]:
    for row in method_rows(plugins=plugins):
        options = _listed(row["hyperparameters"])
        yield f"`{row['name']}`", row["summary"], _source(row), row["schedule"], options


def _listed(options: Mapping[str, Any]) -> str:
    return "<br>".join(f"`{name}` = {value}" for name, value in options.items())


def _schemes(*, plugins: bool = True) -> Iterator[Sequence[str]]:
    for row in scheme_rows():
        own = [
            f"distill.scheme_options.{row['name']}.{name} = {value}" for name, value in row["hyperparameters"].items()
        ]
        settings = "<br>".join(f"`{setting}`" for setting in [*own, *row["parameters"]])
        known = [name for name in row["methods"] if owner("method", name) is None]
        everything = len(row["methods"]) == len(METHODS)
        inside = "all" if everything else ", ".join(row["methods"] if plugins else known)
        yield f"`{row['name']}`", row["summary"], _source(row), settings, inside


def _source(row: dict[str, Any]) -> str:
    return f"{row['source']}{'' if row['published'] else ' (reconstruction)'}"


def show_parameters() -> None:
    """Print all parameters as a table."""
    _show(PARAMETERS_HEAD, parameter_rows())


def parameters_markdown() -> str:
    """docs/parameters.md."""
    rows = list(parameter_rows())
    parts = ["# Parameters", "Every field of `params.yaml`; made by `make docs` from `gkd_core/config/schema.py`."]
    for name, field in Params.model_fields.items():
        inside = [row for row in rows if row[0].startswith((f"`{name}.", f"`{name}`"))]
        section = section_of(field.annotation)
        about = " ".join(((section and section.__doc__) or "").split())
        parts += [f"## {name}", *filter(None, [about]), _markdown(PARAMETERS_HEAD, inside)]
    parts += ["## Recipes", RECIPES_ABOUT, _markdown(("parameter", *(f"`{name}`" for name in RECIPES)), _recipes())]
    parts.append("\n".join(f"- `{name}`: {' '.join((rule.__doc__ or '').split())}" for name, rule in RECIPES.items()))
    return "\n\n".join(parts) + "\n"


def _recipes() -> Iterator[Sequence[str]]:
    columns = [
        [flat(recipe({}, Start(None, PHOTO, images, whole=True))) for images in (FEW, MANY)]
        for recipe in RECIPES.values()
    ]
    for name in columns[0][0]:
        yield f"`{name}`", *(" → ".join(dict.fromkeys(shown(values[name]) for values in column)) for column in columns)


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Sections flattened to dotted names."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def shown(value: Any) -> str:
    """As it would stand in params.yaml."""
    return value if isinstance(value, str) else json.dumps(value)


def parameter_rows() -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of every field; sections flattened to dotted names."""
    schema = Params.model_json_schema()
    return list(_fields(schema, schema["$defs"], ""))


def _fields(model: dict[str, Any], models: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model["properties"].items():
        optional = [
            each for each in field.get("anyOf", ()) if "$ref" in each and models[_model(each)]["type"] == "object"
        ]
        if "$ref" in field or optional:
            yield from _fields(models[_model(optional[0] if optional else field)], models, f"{prefix}{name}.")
            continue
        meaning = " ".join(field.get("description", "").split())
        yield f"`{prefix}{name}`", _type(field), f"`{shown(field['default'])}`", meaning
        if "$ref" in field.get("items", {}):
            yield from _fields(models[_model(field["items"])], models, f"{prefix}{name}[].")


def _type(field: dict[str, Any]) -> str:
    """A short type with its limits, e.g. `int ≥ 1 or null`."""
    match field:
        case {"$ref": _}:
            return _model(field).removesuffix("Config")
        case {"anyOf": several}:
            return " or ".join(map(_type, several))
        case {"enum": values}:
            return " or ".join(map(str, values))
        case {"items": each}:
            return f"list of {_type(each)}"
    limits = [f"{sign} {field[name]:g}" for name, sign in LIMITS.items() if name in field]
    return f"{TYPES[field['type']]} {' '.join(limits)}".rstrip()


def _model(field: dict[str, Any]) -> str:
    return str(field["$ref"]).rpartition("/")[2]


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return (
        "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")
    )


def _show(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of Markdown's cells on the terminal."""
    table = Table()
    for heading in head:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("<br>", "\n").replace("`", "") for cell in row))
    console().print(table)
