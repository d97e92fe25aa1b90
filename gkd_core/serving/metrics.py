"""What Prometheus reads at /metrics; a registry of its own, so that several servers fit in one process."""

from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from gkd_core.serving.answers import Answers, Decisions
from gkd_core.serving.batching import BatchFacts
from gkd_core.serving.model import Model

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """All counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter(
            "gkd_requests", "Answers, by endpoint and status.", ["endpoint", "status"], registry=own
        )
        self.seconds = Histogram(
            "gkd_request_seconds",
            "From the headers of a request to its answer.",
            ["endpoint"],
            buckets=SECONDS,
            registry=own,
        )
        self.images = Counter("gkd_images", "Images that went through the model.", registry=own)
        self.batch_images = Histogram("gkd_batch_images", "Images in a run of the model.", buckets=IMAGES, registry=own)
        self.batch_requests = Histogram("gkd_batch_requests", "Requests in a run.", buckets=IMAGES, registry=own)
        self.queue_seconds = Histogram(
            "gkd_queue_seconds", "How long a run's oldest request waited.", buckets=SECONDS, registry=own
        )
        self.inference_seconds = Histogram(
            "gkd_inference_seconds", "A run of the model.", buckets=SECONDS, registry=own
        )
        self.refused = Counter("gkd_refused", "Requests told 503, by what had no room.", ["reason"], registry=own)
        self.reloads = Counter(
            "gkd_reloads",
            "Attempts to serve another model: loaded, refused (it cannot be served), unreachable, failed.",
            ["outcome"],
            registry=own,
        )
        for outcome in ("loaded", "refused", "unreachable", "failed"):
            self.reloads.labels(outcome)
        self.stale = Gauge(
            "gkd_model_stale", "1 while what ought to be served cannot be, and an older one is.", registry=own
        )
        self._model = Gauge(
            "gkd_model_info", "1 for the model being served.", ["version", "model_sha256", "precision"], registry=own
        )
        self._answers = _AnswersCollector()
        own.register(self._answers)
        self._queue = Gauge("gkd_queue_images", "Images waiting for the model.", registry=own)
        self._connections = Gauge("gkd_connections", "Open connections.", registry=own)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def watch(self, *, queue: Callable[[], float], connections: Callable[[], float]) -> None:
        """Where the two numbers that change all the time are read when somebody asks."""
        self._queue.set_function(queue)
        self._connections.set_function(connections)

    def serving(self, model: Model) -> None:
        """Say which model is served now."""
        self._answers.model = model
        self._model.clear()
        self._model.labels(model.version, model.sha256, model.facts["precision"]).set(1)

    def batch(self, facts: BatchFacts) -> None:
        """Count a run of the model."""
        self.images.inc(facts.images)
        self.batch_images.observe(facts.images)
        self.batch_requests.observe(facts.requests)
        self.queue_seconds.observe(facts.waited)
        self.inference_seconds.observe(facts.ran)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _AnswersCollector(Collector):
    """Prometheus' lines on the model that is served now: its answers where it has a reference, and its decisions."""

    def __init__(self) -> None:
        self.model: Model | None = None

    def collect(self) -> Iterator[Metric]:
        """Counters and gauges by version, so that two versions side by side do not add up."""
        model = self.model
        if model is not None and model.answers is not None:
            yield from _of_answers(model.answers, model.version)
        if model is not None and model.decisions is not None:
            yield from _of_decisions(model.decisions, model.version)


def _of_answers(answers: Answers, version: str) -> Iterator[Metric]:
    predicted, confidence = answers.read()
    reference = answers.reference
    by_class = ["version", "class"]
    counted = CounterMetricFamily("gkd_predictions", "Images, by their likeliest class.", labels=by_class)
    share = GaugeMetricFamily(
        "gkd_reference_share", "Part of the validation images whose likeliest class it is.", labels=by_class
    )
    total = sum(reference["predicted"])
    for name, count, expected in zip(answers.classes, predicted, reference["predicted"], strict=True):
        counted.add_metric([version, name], count)
        share.add_metric([version, name], expected / total)
    yield counted
    yield share
    confident = SummaryMetricFamily("gkd_confidence", "Probability of the likeliest class.", labels=["version"])
    confident.add_metric([version], count_value=sum(predicted), sum_value=confidence)
    yield confident
    mean = GaugeMetricFamily(
        "gkd_reference_confidence", "Mean of the same on the validation images.", labels=["version"]
    )
    mean.add_metric([version], reference["mean_confidence"])
    yield mean


def _of_decisions(decisions: Decisions, version: str) -> Iterator[Metric]:
    counted = CounterMetricFamily(
        "gkd_decisions", "Images, by whether they were given a class or none.", labels=["version", "decision"]
    )
    for name, count in zip(("class", "none"), decisions.read(), strict=True):
        counted.add_metric([version, name], count)
    yield counted
    part = GaugeMetricFamily(
        "gkd_reference_none_of_these", "Part of the validation images that was given no class.", labels=["version"]
    )
    part.add_metric([version], decisions.expected)
    yield part
