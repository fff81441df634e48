"""Every metric of a worker, with unit and meaning. Lower layers return facts, this counts them.

Freshness is a histogram over events, filled by whole batches with numpy: observing one event
at a time would cost as much as folding it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_FRESH = (*_SECONDS[3:], 60.0, 300.0, 3600.0, 86400.0)

OUTCOMES = (
    "applied",
    "applied_late",
    "duplicate",
    "conflict",
    "late",
    "future",
    "erased",
    "before_cut",
)


class Freshness(Collector):
    """Seconds from event time to the value being readable, one observation an event."""

    def __init__(self, name: str, meaning: str) -> None:
        self._name, self._meaning = name, meaning
        self._bounds = np.array(_FRESH)
        self._counts = np.zeros(len(_FRESH) + 1, np.int64)
        self._sum = 0.0

    def observe(self, seconds: npt.NDArray[np.float64]) -> None:
        """Add a batch of observations."""
        at = np.searchsorted(self._bounds, seconds)
        self._counts += np.bincount(at, minlength=len(self._counts))
        self._sum += float(seconds.sum())

    def quantile(self, share: float) -> float:
        """Upper bound of the bucket that holds the quantile; nan where nothing was seen."""
        total = self._counts.sum()
        if not total:
            return float("nan")
        at = int(np.searchsorted(np.cumsum(self._counts), share * total))
        return _FRESH[at] if at < len(_FRESH) else float("inf")

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """As Prometheus asks for it."""
        summed = np.cumsum(self._counts)
        buckets = [(str(b), float(n)) for b, n in zip((*_FRESH, "+Inf"), summed, strict=True)]
        yield HistogramMetricFamily(self._name, self._meaning, buckets, self._sum)


class Metrics:
    """The metrics of one worker process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.freshness = Freshness(
            "livevalue_freshness_seconds", "From event time to the value being readable, by event"
        )
        registry.register(self.freshness)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"livevalue_{name}", meaning, labels, registry=registry)

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"livevalue_{name}", meaning, labels, registry=registry)

        def seconds(name: str, meaning: str) -> Histogram:
            return Histogram(f"livevalue_{name}", meaning, buckets=_SECONDS, registry=registry)

        self.events = counter("events", "Events by what became of them in the fold", "outcome")
        self.rejected = counter("rejected", "Records that went to dead letters", "reason")
        self.without_id = counter(
            "without_id", "Events folded that came without an id: a repeat of one counts again"
        )
        self.split = counter(
            "erased_amid_settled", "Erasures that took settled records with them which came after"
        )
        self.users = counter("users_rescored", "Documents written, users by commit")
        self.commits = counter("commits", "Commits to the store, by answer", "outcome")
        self.published = counter("published", "Documents published, tombstones included")
        self.letters = counter("dead_letters", "Dead letters published")
        self.transactions = counter("transactions", "Transactions of the output")
        self.claims = counter("claims", "Partitions claimed")
        self.irregular = counter("irregular", "Times a partition was forgotten, by cause", "cause")
        self.gap_records = counter("gap_records", "Records read again straight from the log")
        self.rolled_back = counter("rolled_back", "Roll-backs of Redis that were noticed")
        self.batch_s = seconds("batch_seconds", "One step of a partition: decode to commit")
        self.commit_s = seconds("commit_seconds", "One commit in the store, seen from here")
        self.publish_s = seconds("publish_seconds", "One transaction of the output")
        self.lag_s = seconds("commit_to_published_seconds", "From commit to published")
        self.lag = gauge("lag_records", "Last stable offset - watermark, positions", "partition")
        self.clock = gauge("clock_seconds", "Largest event time accepted", "partition", "source")
        self.seq = gauge("watermark_seq", "Number of the last commit", "partition")
        self.outbox = gauge("outbox_users", "Documents waiting to be published", "partition")
        self.halted = gauge("halted", "1 = halted, an operator must act", "partition")
        self.owned = gauge("partitions", "Partitions that this worker owns")
        self.generation = gauge(
            "generation_info",
            "1 = this generation serves this partition",
            "partition",
            "generation",
        )

    def count(self, counts: Mapping[str, int]) -> None:
        """Add the facts of one step, as `Processed.counts` names them."""
        for name, number in counts.items():
            if name in OUTCOMES:
                self.events.labels(name).inc(number)
            elif name.startswith("rejected_"):
                self.rejected.labels(name.removeprefix("rejected_")).inc(number)
        self.without_id.inc(counts.get("without_id", 0))
        self.split.inc(counts.get("erased_amid_settled", 0))
        self.users.inc(counts.get("users", 0))
