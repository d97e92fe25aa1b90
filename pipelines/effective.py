"""`gkd params --effective`: what a run would use, and why."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from gkd_core.config import Params
from gkd_core.config.recipes import Planned, ResolvedTraining, choose, planned
from gkd_core.config.schema import Section
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from pipelines.catalogue import flat, shown
from pipelines.summary import console

DATA = Path("data")
UNKNOWN = "?"


def show_effective(params: Params, data: Path | None) -> dict[str, Any]:
    """Print every parameter with its value and where that is from, and which recipe each training has.

    Args:
        data: a prepared folder, for the size and number of the images; None looks for one in `data`.
    Returns:
        "parameters", by dotted name, where a value that depends on images not yet prepared is "?"; and "recipes", by
        section and network.
    Raises:
        GkdError: the folder is no prepared data, or a training would be refused.
    """
    image_size = images = unlabelled = whole = None
    if data is not None or (DATA / "dataset.json").is_file():
        info = PreparedData.open(DATA if data is None else data, check=False).info
        image_size, images, unlabelled = info.image_size, info.counts["train"], info.unlabelled is not None
        whole = info.photos is not None
    plans = planned(params, image_size, images, unlabelled, whole)
    recipes = {f"{plan.section} of {plan.network}": _recipe(plan) for plan in plans}
    resolved: dict[str, Any] = {}
    for plan in reversed(plans):
        resolved |= flat(_agreed(plan), f"{plan.section}.")
    rows = list(_rows(params, "", resolved))
    table = Table()
    for heading in ("parameter", "value", "from"):
        table.add_column(heading, overflow="fold")
    for name, value, origin in rows:
        table.add_row(name, value if value == UNKNOWN else shown(value), origin)
    console().print(table)
    for training, why in recipes.items():
        console().print(f"{training}: {why}", highlight=False, markup=False)
    if any(value == UNKNOWN for _, value, _ in rows):
        console().print("? depends on the images: run `gkd prepare`, or pass --data FOLDER", highlight=False)
    return {"parameters": {name: value for name, value, _ in rows}, "recipes": recipes}


def _trainings(plan: Planned) -> list[ResolvedTraining]:
    """Those it may come to; one that any images refuse is an error."""
    found = [outcome for outcome in plan.outcomes() if not isinstance(outcome, str)]
    if not found:
        raise GkdError(str(plan.outcomes()[0]))
    return found


def _recipe(plan: Planned) -> str:
    """Which one, and why; several where that depends on images not yet prepared."""
    chosen = dict.fromkeys(choose(plan.config, start) for start in plan.starts)
    return " or ".join(f"{recipe} ({why})" for recipe, why in chosen)


def _agreed(plan: Planned) -> dict[str, Any]:
    """Values by field, and "?" where they depend on images not yet prepared."""
    each = [flat(training.model_dump(mode="json")) for training in _trainings(plan)]
    return {name: value if all(one[name] == value for one in each) else UNKNOWN for name, value in each[0].items()}


def _rows(section: Section, prefix: str, resolved: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """(name, value, where it is from) of every field, sections flattened to dotted names.

    Args:
        resolved: values of trainings as a run would use them, by the same names.
    """
    for name, value in section:
        place = f"{prefix}{name}"
        if isinstance(value, Section):
            yield from _rows(value, f"{place}.", resolved)
            continue
        origin = "given" if name in section.model_fields_set else "default"
        if value != resolved.get(place, value):
            training = f"{place.partition('train.')[0]}train"
            chosen = {"recipe": "chosen by auto", "unlabelled_fraction": "chosen by the data"}
            origin = chosen.get(name, f"recipe {resolved[f'{training}.recipe']}")
            value = resolved[place]
        yield place, _plain(value), origin


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.model_dump(mode="json") if isinstance(value, Section) else value
