"""What real time is worth: the same generation, fresh against stale.

A row is a user at a moment m. Fresh is what the generation says at m of all that had arrived by m;
stale is what it said some time earlier, or what a document of that time says of m by its silence
curve. Both are held against what the user goes on to spend in [m, m + horizon), which begins
after the event that made the fresh score, so that no score is credited with money already seen.

- `calendar` rows: every user (or a sample) at evenly spread instants, as somebody reads who looks
  at all users at a time of his own. Metrics are taken within each instant and averaged; by age
  they are taken over all rows at once.
- `event` rows: users just after an event of theirs, as something that is triggered by events reads.
  Metrics are taken over all rows at once.

A user of whom nothing was known when the stale score was made gets the `prior` generation's word
on somebody unknown, the same for all of them, and is counted; rows of `seen` leave those users
out. A rival model is asked once a day, at midnight UTC, as a nightly job would be.

Shapes: N rows, H horizons. Times are integer milliseconds, UTC; age in days since the first event.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featurestore import times
from featurestore.settings import FeatureSettings
from featurestore.state import States
from scoring.generation import prior
from scoring.judging import metrics
from scoring.judging.bootstrap import paired_bootstrap
from scoring.judging.history import DAY, Log
from scoring.judging.known import erased, known_at
from scoring.judging.learned import learned
from scoring.judging.question import BadQuestion, Case, Question, net_horizons, stamp
from scoring.judging.scored import number
from scoring.judging.spans import Spans
from scoring.scorer import Scorer
from scoring.settings import ModelSettings

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]
Progress = Callable[[str], None]
Kind = Literal["calendar", "event"]

AGES = (0, 1, 7, 30, 90)  # days at which the next group of ages begins
LEAST = 5  # users who spend, below which nothing is said of a group
WITH_INTERVAL = ("ngini", "top20", "mae")
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": DAY}


@dataclass(frozen=True, slots=True)
class Stale:
    """How a score is behind."""

    name: str
    behind_ms: int
    moved: bool = False  # the document of then, brought to the moment by its silence curve


@dataclass(frozen=True, slots=True)
class Size:
    """How much is looked at."""

    instants: int = 8  # of `calendar`, a horizon
    rows: int = 16_000  # of each kind, drawn at random beyond
    draws: int = 200  # of the bootstrap
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Rows:
    """Users at moments."""

    kind: Kind
    user: Ints  # (N,)
    moment_ms: Ints  # (N,)
    window: Ints  # (N,) instant, or 0

    def only(self, keep: Bools) -> _Rows:
        return _Rows(self.kind, self.user[keep], self.moment_ms[keep], self.window[keep])


def parse_staleness(text: str) -> tuple[Stale, ...]:
    """`0s,1h,1d,7d,1d+silence`.

    >>> [(s.behind_ms, s.moved) for s in parse_staleness("0s,1h,1d+silence")]
    [(0, False), (3600000, False), (86400000, True)]
    """
    out = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        found = re.fullmatch(r"(\d{1,4})([smhd])(\+silence)?", part)
        if not found:
            raise BadQuestion(
                f"{part!r} is no staleness: write spans such as 0s,1h,1d,7d,1d+silence"
            )
        behind = int(found[1]) * _UNIT_MS[found[2]]
        out.append(Stale(part, behind, bool(found[3])))
    return tuple(out)


def staleness(
    log: Log,
    question: Question,
    stales: Sequence[Stale],
    features: FeatureSettings,
    sources: Sequence[str],
    progress: Progress = lambda _: None,
    size: Size | None = None,
) -> list[dict[str, Any]]:
    """Rows of `evaluate --staleness`: the first model fresh and stale, the others daily."""
    size = size or Size()
    case = Case.of(log, question, features, sources)
    out: list[dict[str, Any]] = []
    for as_of in question.as_of_ms:
        after = _Afterwards(case, as_of, size, progress)
        for kind in ("calendar", "event"):
            progress(f"{stamp(as_of)} {kind} rows")
            out += after.rows("calendar" if kind == "calendar" else "event", stales)
    return out


class _Afterwards:
    """Everything after one cut-off: generations of then, asked at later moments."""

    def __init__(self, case: Case, as_of_ms: int, size: Size, progress: Progress) -> None:
        history, question = case.history, case.question
        self._case, self._history, self._question = case, history, question
        self._as_of, self._size = as_of_ms, size
        self._names = list(history.users)
        gone = erased(case.log)
        self._usable = np.array([name not in gone for name in self._names], bool)
        self._spans = Spans(history)
        self._first = np.full(len(self._names), np.iinfo(np.int64).max)
        np.minimum.at(self._first, history.user, history.time_ms)
        self._horizons = net_horizons(question.horizons_days)
        longest = max(self._horizons)
        self._model = ModelSettings(horizons_days=self._horizons, headline=f"d{longest}")
        progress(f"{stamp(as_of_ms)} training")
        self._generations = learned(case, as_of_ms)

    def rows(self, kind: Kind, stales: Sequence[Stale]) -> Iterator[dict[str, Any]]:
        """One row a horizon, group of users and way of being stale."""
        rows = self._calendar() if kind == "calendar" else self._events()
        if not len(rows.user):
            return
        (name, generation), *rivals = self._generations
        scorer = Scorer(generation, self._model, self._case.features)
        fresh, _ = self._said(scorer, rows, rows.moment_ms)
        others: list[tuple[str, str, Doubles, Bools]] = []
        for stale in stales:
            before = rows.moment_ms - stale.behind_ms
            said, known = self._said(scorer, rows, before, moved=stale.moved)
            others.append((name, stale.name, said, known))
        for rival, made in rivals:
            midnight = rows.moment_ms // DAY * DAY
            asked = Scorer(made, self._model, self._case.features)
            others.append((rival, "daily", *self._said(asked, rows, midnight)))
        for days in self._question.horizons_days:
            column = self._horizons.index(days)
            inside = rows.moment_ms + days * DAY <= self._history.end_ms
            actual = self._spans.value(rows.user, rows.moment_ms, rows.moment_ms + days * DAY)
            for who, keep, pooled in self._groups(rows):
                for rival, how, said, known in others:
                    at = np.flatnonzero(inside & keep & (known if who == "seen" else True))
                    spenders = len(np.unique(rows.user[at][actual[at] > 0]))
                    if spenders < (1 if who == "all" else LEAST):
                        continue
                    head = {
                        "as_of": times.text(self._as_of),
                        "model": name,
                        "horizon_days": days,
                        "rows": kind,
                        "who": who,
                        "against": rival,
                        "stale": how,
                        "moments": len(np.unique(rows.moment_ms[at])),
                        "users": len(np.unique(rows.user[at])),
                        "n": len(at),
                        "unseen": int((~known[at]).sum()),
                    }
                    windows = np.zeros(len(at), np.int64) if pooled else rows.window[at]
                    yield head | self._compared(
                        actual[at], fresh[at, column], said[at, column], rows.user[at], windows,
                        who,
                    )  # fmt: skip

    def _groups(self, rows: _Rows) -> Iterator[tuple[str, Bools, bool]]:
        """(name, rows, whether metrics are taken over all of them at once)."""
        everyone = np.ones(len(rows.user), bool)
        pooled = rows.kind == "event"
        yield "all", everyone, pooled
        yield "seen", everyone, pooled
        age = (rows.moment_ms - self._first[rows.user]) / DAY
        for low, high in zip(AGES, (*AGES[1:], None), strict=True):
            inside = age >= low
            if high is None:
                yield f"{low} days and older", inside, True
            else:
                yield f"{low}-{high} days old", inside & (age < high), True

    def _compared(
        self, actual: Doubles, fresh: Doubles, stale: Doubles, users: Ints, windows: Ints, who: str
    ) -> dict[str, Any]:
        """Metrics of both, and the intervals of their differences."""
        said = {
            which: {
                name: number(_within(metrics.METRICS[name], actual, values, windows))
                for name in ("ngini", "spearman", "top20", "mae", "bias")
            }
            for which, values in (("fresh_metrics", fresh), ("stale_metrics", stale))
        }
        differences: dict[str, dict[str, float | None]] = {}
        for metric in WITH_INTERVAL if who == "all" else WITH_INTERVAL[:1]:
            if np.array_equal(fresh, stale):
                differences[metric] = {"delta": 0.0, "low": 0.0, "high": 0.0}
                continue
            spent = np.isin(windows, np.unique(windows[actual > 0]))
            found = paired_bootstrap(
                metric, actual[spent], fresh[spent], stale[spent], users[spent], windows[spent],
                self._size.draws, self._size.seed,
            )  # fmt: skip
            differences[metric] = {key: number(v) for key, v in found._asdict().items()}
        return {**said, "differences": differences}

    def _calendar(self) -> _Rows:
        """Users known at evenly spread instants, up to where each horizon's label is whole."""
        ends = [self._history.end_ms - days * DAY for days in self._question.horizons_days]
        spread = [np.linspace(self._as_of, end, self._size.instants) for end in ends]
        instants = np.unique(np.concatenate(spread).astype(np.int64))
        known = np.full(len(self._names), np.iinfo(np.int64).max)
        arrived = np.maximum(self._history.log_ms, self._history.time_ms)
        np.minimum.at(known, self._history.user, arrived)
        user, window = np.nonzero(known[:, None] < instants)
        return self._drawn(_Rows("calendar", user, instants[window], window))

    def _events(self) -> _Rows:
        """Users a millisecond after an event of theirs had arrived."""
        history = self._history
        moment = np.maximum(history.log_ms, history.time_ms) + 1
        last = history.end_ms - min(self._question.horizons_days) * DAY
        at = np.flatnonzero((moment >= self._as_of) & (moment <= last))
        pairs = np.unique(np.stack([history.user[at], moment[at]]), axis=1)
        none = np.zeros(pairs.shape[1], np.int64)
        return self._drawn(_Rows("event", pairs[0], pairs[1], none))

    def _drawn(self, rows: _Rows) -> _Rows:
        """Of the population asked for, not too many."""
        keep = self._usable[rows.user]
        if self._question.population != "all":
            bought = self._spans.orders_before(rows.user, rows.moment_ms) > 0
            keep = keep & (bought if self._question.population == "buyers" else ~bought)
        at = np.flatnonzero(keep)
        if len(at) > self._size.rows:
            draw = np.random.default_rng(self._size.seed)
            at = np.sort(draw.choice(at, self._size.rows, replace=False))
        kept = np.zeros(len(keep), bool)
        kept[at] = True
        return rows.only(kept)

    def _said(
        self, scorer: Scorer, rows: _Rows, cut_ms: Ints, *, moved: bool = False
    ) -> tuple[Doubles, Bools]:
        """(N, H) expected values by what had arrived before `cut_ms`, and who was known then."""
        pairs, back = np.unique(np.stack([rows.user, cut_ms]), axis=1, return_inverse=True)
        back = back.reshape(-1)
        out = np.empty((pairs.shape[1], len(self._horizons)))
        seen = np.zeros(pairs.shape[1], bool)
        out[:] = self._unknown()
        names = [self._names[u] for u in pairs[0].tolist()]
        moment = np.empty(pairs.shape[1], np.int64)
        # a pair (user, cut) stands for one moment: staleness is the same for all rows
        moment[back] = rows.moment_ms
        case = self._case
        for known in known_at(case.log, names, pairs[1], scorer, case.features, case.sources):
            some = np.flatnonzero(known.states.known())
            if not len(some):
                continue
            states, head, at = known.states.select(some), known.head[some], known.question[some]
            last = states.head["last_ms"]
            if moved:
                document = scorer.last(1, last, scorer.rescore(states, head, last))
                out[at] = scorer.previous_at(document, moment[at])
            else:
                when = np.maximum(last, pairs[1, at])
                out[at] = scorer.now(states, head, when).expected[:, 0]
            seen[at] = True
        return out[back], seen[back]

    def _unknown(self) -> Doubles:
        """(H,) what the prior says of somebody of whom nothing is known."""
        scorer = Scorer(prior(self._model), self._model, self._case.features)
        when = np.array([self._as_of], np.int64)
        said = scorer.now(States.empty([""]), scorer.start(1), when)
        return np.asarray(said.expected[0, 0], np.float64)


def _within(metric: metrics.Metric, actual: Doubles, said: Doubles, windows: Ints) -> float:
    """Mean over the windows in which somebody spent."""
    parts = [(actual[windows == w], said[windows == w]) for w in np.unique(windows)]
    found = [metric(a, s) for a, s in parts if (a > 0).any()]
    known = [value for value in found if np.isfinite(value)]
    return float(np.mean(known)) if known else metrics.NAN
