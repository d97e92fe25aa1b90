"""The part of PromQL that gkd's alert rules use, evaluated over two readings of /metrics an interval apart.

`increase` is the difference of the two readings: Prometheus' own stretches it to the interval, all series alike.
"""

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Series = dict[str, Vector]
TOKEN = re.compile(r'\s*(?:(\d+(?:\.\d+)?)|([A-Za-z_:][\w:]*)|"([^"]*)"|(\[\w+\])|([-+*/<>=(){},]))')
GROUPS = ("number", "name", "text", "range", "sign")
FUNCTIONS: dict[str, Callable[[list[float]], float]] = {"sum": sum, "max": max}
SIGNS: dict[str, Callable[[float, float], float]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def read(text: str, **target: str) -> Series:
    """The samples of one reading; `target` are the labels that Prometheus adds, namespace and job."""
    series: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset((sample.labels | target).items())
            assert labels not in series.setdefault(sample.name, {}), f"{sample.name} twice"
            series[sample.name][labels] = sample.value
    return series


def alerts(groups: list[dict[str, Any]], before: Series, after: Series) -> tuple[dict[str, Vector], Series]:
    """What each alert would fire for, by name, and the series recorded on the way."""
    fired: dict[str, Vector] = {}
    recorded: Series = {}
    for rule in (rule for group in groups for rule in group["rules"]):
        found = Query(rule["expr"], before, after | recorded).value()
        if "record" in rule:
            recorded[rule["record"]] = found
        else:
            fired[rule["alert"]] = found
    return fired, recorded


class Query:
    """One expression over two readings."""

    def __init__(self, text: str, before: Series, after: Series) -> None:
        self._before, self._after = before, after
        self._tokens = list(self._split(text))

    def value(self) -> Vector:
        found = self._and()
        assert not self._tokens, f"what is {self._tokens}?"
        assert isinstance(found, dict)
        return found

    @staticmethod
    def _split(text: str) -> Iterator[tuple[str, str]]:
        place, text = 0, text.rstrip()
        while place < len(text):
            match = TOKEN.match(text, place)
            assert match, f"no PromQL: {text[place:]}"
            yield next((kind, found) for kind, found in zip(GROUPS, match.groups(), strict=True) if found is not None)
            place = match.end()

    def _next(self, *wanted: str) -> bool:
        return bool(self._tokens) and self._tokens[0][1] in wanted and self._tokens[0][0] in ("sign", "name")

    def _take(self, wanted: str | None = None) -> str:
        _, text = self._tokens.pop(0)
        assert wanted in (None, text), f"{wanted} is wanted, not {text}"
        return text

    def _names(self) -> set[str]:
        self._take("(")
        names = set()
        while not self._next(")"):
            names.add(self._take())
            if self._next(","):
                self._take()
        self._take(")")
        return names

    def _and(self) -> Any:
        left = self._comparison()
        while self._next("and"):
            self._take()
            right = self._comparison()
            left = {labels: value for labels, value in left.items() if labels in right}
        return left

    def _comparison(self) -> Any:
        left = self._sum()
        if self._next(">"):
            self._take()
            right = self._sum()
            assert isinstance(right, float)
            return {labels: value for labels, value in left.items() if value > right}
        return left

    def _sum(self) -> Any:
        return self._chain(("+", "-"), self._product)

    def _product(self) -> Any:
        return self._chain(("*", "/"), self._single)

    def _chain(self, signs: tuple[str, str], inner: Callable[[], Any]) -> Any:
        left = inner()
        while self._next(*signs):
            sign = self._take()
            ignored, many = set(), False
            if self._next("ignoring"):
                self._take()
                ignored = self._names()
            if self._next("group_left"):
                self._take()
                assert self._names() == set()
                many = True
            left = _combined(sign, left, inner(), ignored, many=many)
        return left

    def _single(self) -> Any:
        kind, text = self._tokens.pop(0)
        if kind == "number":
            return float(text)
        if text == "(":
            found = self._and()
            self._take(")")
            return found
        assert kind == "name", text
        if text in FUNCTIONS:
            self._take("by")
            kept = self._names()
            inner = self._bracketed()
            gathered: dict[Labels, list[float]] = {}
            for labels, value in inner.items():
                gathered.setdefault(frozenset((k, v) for k, v in labels if k in kept), []).append(value)
            return {labels: FUNCTIONS[text](values) for labels, values in gathered.items()}
        if text == "abs":
            return {labels: abs(value) for labels, value in self._bracketed().items()}
        if text == "increase":
            self._take("(")
            name, wanted = self._selector(self._take())
            assert self._tokens.pop(0)[0] == "range", "increase wants a range"
            self._take(")")
            first, last = (_matching(series, name, wanted) for series in (self._before, self._after))
            return {labels: value - first[labels] for labels, value in last.items() if labels in first}
        name, wanted = self._selector(text)
        return _matching(self._after, name, wanted)

    def _bracketed(self) -> Any:
        self._take("(")
        found = self._and()
        self._take(")")
        return found

    def _selector(self, name: str) -> tuple[str, set[tuple[str, str]]]:
        wanted = set()
        if self._next("{"):
            self._take()
            while not self._next("}"):
                label = self._take()
                self._take("=")
                wanted.add((label, self._take()))
                if self._next(","):
                    self._take()
            self._take("}")
        return name, wanted


def _matching(series: Series, name: str, wanted: set[tuple[str, str]]) -> Vector:
    assert name in series, f"there is no {name}"
    return {labels: value for labels, value in series[name].items() if wanted <= labels}


def _combined(sign: str, left: Any, right: Any, ignored: set[str], *, many: bool) -> Any:
    def reckon(first: float, second: float) -> float:
        if sign == "/":
            return first / second if second else float("nan")
        return SIGNS[sign](first, second)

    if isinstance(right, float):
        return {labels: reckon(value, right) for labels, value in left.items()}

    def key(labels: Labels) -> Labels:
        return frozenset((name, value) for name, value in labels if name not in ignored)

    others = {key(labels): value for labels, value in right.items()}
    assert len(others) == len(right), "many-to-many"
    assert many or len({key(labels) for labels in left}) == len(left), "many-to-one without group_left"
    return {
        (labels if many else key(labels)): reckon(value, others[key(labels)])
        for labels, value in left.items()
        if key(labels) in others
    }
