"""What is compared: named settings, each of them params.yaml with parts of `distill`, `train` and `student` replaced.

A file of contenders is a YAML list. An entry is the name of a method, or has a name and beside it what differs:

    - kd
    - name: kd, larger steps
      distill: {method: kd}
      train: {learning_rate: 0.2}
    - name: wider student
      student: {name: resnet8x4}
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gkd_core import schemes
from gkd_core.config.load import parse_yaml, use_new_names, validate
from gkd_core.config.schema import DistillConfig, Params, TrainingConfig, whole
from gkd_core.errors import GkdError, refuse_doubled, unknown
from gkd_core.files import json_digest
from gkd_core.methods import METHODS, is_method, list_methods
from gkd_core.plugins import unknown_name

SECTIONS = ("distill", "train", "student")
REFERENCE = "kd"  # of methods; of a file of contenders the first
# What is written beside the name instead of in its section.
MISPLACED = {
    name: f"{section}.{name}"
    for section, model in (("train", TrainingConfig), ("distill", DistillConfig))
    for name in model.model_fields
}


@dataclass(frozen=True)
class Contender:
    """A name, and the whole configuration that it stands for."""

    name: str
    params: Params

    def seeded(self, seed: int) -> Params:
        """The configuration of one of its trainings."""
        return self.params.model_copy(update={"train": self.params.train.model_copy(update={"seed": seed})})

    @property
    def settings(self) -> str:
        """Twelve digits of a sha256 of what is compared, the seed aside: another setting under this name has others."""
        return json_digest([self.seeded(0).digest(*SECTIONS), self.params.student.weights])[:12]


@dataclass(frozen=True)
class _Entry:
    """An entry of the list as it was written."""

    name: str
    sections: dict[str, Any]
    wrong: list[str]
    word: bool


def line_up(
    params: Params,
    methods: Sequence[str] = (),
    contenders: Sequence[Any] | None = None,
    reference: str | None = None,
    *,
    option: str = "",
) -> list[Contender]:
    """Who is compared, the reference first.

    Args:
        params: what all have in common.
        methods: names, the short way to write contenders that differ by their method alone; none is every method.
        contenders: a list as the file has it, instead of methods.
        reference: name of the one that the others are compared with; a method that is not among them joins them. None
            is kd, or the first of the contenders.
        option: what stands before the names of these arguments where the user wrote them ("--").
    Raises:
        GkdError: everything that is wrong, a sentence a line.
    """
    if contenders is None:
        refuse_doubled(methods, f"{option}methods")
        where, entries = f"{option}methods", [_entry(name, 0) for name in methods or list_methods()]
        reference = reference or REFERENCE
    else:
        where, entries = f"{option}contenders", _entries(contenders, f"{option}contenders")
        if methods:
            raise GkdError(f"{where} and {option}methods are both given: leave one of them out")
        reference = reference or entries[0].name
    names = [entry.name for entry in entries]
    if reference not in names:
        if not is_method(reference):
            kind = "method" if contenders is None else "contender"
            raise GkdError(unknown_name(f"{option}reference: {kind}", reference, dict.fromkeys([*names, *METHODS])))
        entries.insert(0, _entry(reference, 0))
    found = _resolve(entries, params, where)
    return sorted(found, key=lambda contender: contender.name != reference)


def parse_contenders(text: str, where: str) -> list[Any]:
    """The list in a file of contenders, to be looked at by `line_up`.

    Args:
        text: YAML.
        where: it is from, for the error.
    Raises:
        GkdError: it is no YAML, or no list.
    """
    content = parse_yaml(text, where)
    if not isinstance(content, list) or not content:
        shown = f"a {type(content).__name__}" if content else "nothing"
        raise GkdError(f"{where} must hold a list of contenders (- name: …), not {shown}")
    return content


def _entries(contenders: Any, where: str) -> list[_Entry]:
    if isinstance(contenders, str) or not isinstance(contenders, Sequence) or not contenders:
        raise GkdError(f"{where} is {contenders!r}: give a list of contenders")
    return [_entry(given, place) for place, given in enumerate(contenders, start=1)]


def _entry(given: Any, place: int) -> _Entry:
    """One entry, and what is wrong with how it is written.

    Args:
        place: in the list, for an entry without a name.
    """
    if isinstance(given, str):
        wrong = [] if is_method(given) else [unknown_name("method", given, METHODS)]
        return _Entry(given, {"distill": {"method": given}}, wrong, word=True)
    if not isinstance(given, dict):
        sentence = f"entry {place} is {given!r}: write a method's name, or name: … and what differs"
        return _Entry("", {}, [sentence], word=False)
    name = given.get("name")
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 100:
        return _Entry("", {}, [f"entry {place}: name is {name!r}: give it one, of a line of text"], word=False)
    keys = given.keys() - {"name", *SECTIONS}
    wrong = [unknown("key", str(key), ["name", *SECTIONS], renamed=MISPLACED) for key in sorted(keys, key=str)]
    sections = {section: given[section] for section in SECTIONS if given.get(section) is not None}
    for section, content in sections.items():
        if not isinstance(content, dict):
            wrong.append(f"{section} is {content!r}: it must be a section ({section}: {{…}})")
    sections = whole({section: content for section, content in sections.items() if isinstance(content, dict)})
    wrong += use_new_names(sections)
    if "seed" in sections.get("train", {}):
        wrong.append("train.seed is given, but all contenders have the seeds of the comparison: leave it out")
    return _Entry(name, sections, wrong, word=False)


def _resolve(entries: Sequence[_Entry], params: Params, where: str) -> list[Contender]:
    """Every entry's whole configuration.

    Raises:
        GkdError: something is wrong with one of them, or with all of them together.
    """
    if sentence := _shared_temperature(entries, params):
        raise GkdError(sentence)
    content = params.model_dump(mode="json", exclude_unset=True)
    wrong: list[str] = []
    found: dict[str, Contender] = {}
    names: set[str] = set()
    settings: dict[str, str] = {}
    for entry in entries:
        sentences = list(entry.wrong)
        if not sentences:
            sections = alone(entry.sections, params)
            resolved, mistakes = validate(merged(content, sections), sections)
            sentences = [mistake.sentence for mistake in mistakes]
            if resolved is not None and not mistakes:
                contender = found[entry.name] = Contender(entry.name, resolved)
                sentences += _misnamed(contender)
                if (same := settings.setdefault(contender.settings, entry.name)) != entry.name:
                    sentences.append(f"it has the same settings as {same!r}: leave one of them out")
        if entry.name in names:
            sentences.append("another contender has this name: give each its own")
        names.add(entry.name)
        # An entry without a name, and a word that is no method, say which they are.
        prefix = f"{where}: " if not entry.name or (entry.word and entry.wrong) else f"{where}: {entry.name!r}: "
        wrong += [f"{prefix}{sentence}" for sentence in sentences]
    if wrong:
        raise GkdError("\n".join(wrong))
    return list(found.values())


def alone(sections: dict[str, Any], params: Params) -> dict[str, Any]:
    """What lies over the parameters; a method without a teacher in it stands beside all schemes, as the student alone.

    Args:
        params: whose scheme it would have.
    """
    distill = sections.get("distill", {})
    method, scheme = distill.get("method"), params.distill.scheme
    if not is_method(method) or METHODS[method].teacher or "scheme" in distill or schemes.get(scheme).takes(method):
        return sections
    return sections | {"distill": distill | {"scheme": schemes.DEFAULT}}


def _misnamed(contender: Contender) -> Iterator[str]:
    """A contender that is called after a method and is trained by another: it forgot to say by which."""
    method = contender.params.distill.method
    if contender.name in METHODS and contender.name != method:
        yield f"its method is {method}: write distill: {{method: {contender.name}}}, or give it another name"


def _shared_temperature(entries: Sequence[_Entry], params: Params) -> str | None:
    """Why one τ is not for all, where several methods would have it."""
    settings = params.distill
    if settings.temperature is None:
        return None
    heirs = [entry.sections.get("distill", {}) for entry in entries]
    methods = {str(each.get("method") or settings.method) for each in heirs if "temperature" not in each}
    if len(methods) < 2:
        return None
    return (
        f"distill.temperature is {settings.temperature:g}, but a comparison gives every method its own: set it to "
        "null, and those you mean under distill.options"
    )


def merged(content: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Sections with what lies over them; null takes the default back.

    >>> merged({"train": {"epochs": 3, "clip_norm": 1.0}}, {"train": {"clip_norm": None, "batch_size": 8}})
    {'train': {'epochs': 3, 'batch_size': 8}}
    """
    found = dict(content)
    for key, value in over.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict):
            below = found.get(key)
            found[key] = merged(below if isinstance(below, dict) else {}, value)
        else:
            found[key] = value
    return found
