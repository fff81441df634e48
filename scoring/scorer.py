"""From folded states to values: one batched pass over the users of a batch.

The carry of a sequence model follows the state: one for the settled part and one for the head
(settled part and tail). Both are kept beside the state in a packed form, with what the last
document said, so that `previous` needs no second read. Everything here is vectorised over users.

Shapes: U users, C carry size, K query times (now, then the knots of silence), H horizons.
Times are integer milliseconds, UTC. Numpy and onnxruntime only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurestore.columns import NO_TIME
from featurestore.fold import Folded, Steps
from featurestore.settings import FeatureSettings
from featurestore.state import States
from scoring.errors import CarryError, GenerationError
from scoring.generation import Generation
from scoring.inputs import Inputs
from scoring.interface import Floats, Prediction
from scoring.settings import ModelSettings

DAY_MS = 86_400_000
PACKED = 1  # version of the packed form
HAS_HEAD = 1  # flag: the head's carry differs from the settled one and follows it

Last = npt.NDArray[np.void]  # (U,) of Scorer.last_dtype: revision, as_of_ms, expected (K, H)
Times = npt.NDArray[np.int64]  # (U,)


class Scorer:
    """Advances carries and rescores users with one generation."""

    def __init__(
        self, generation: Generation, settings: ModelSettings, features: FeatureSettings
    ) -> None:
        horizons = tuple(days * DAY_MS // 1000 for days in settings.horizons_days)
        if generation.model.horizons_s != horizons:
            trained = ", ".join(str(s // 86_400) for s in generation.model.horizons_s)
            raise GenerationError(
                f"generation {generation.short} predicts {trained} days, the settings ask for"
                f" {', '.join(map(str, settings.horizons_days))}: set"
                " LIVEVALUE_MODEL__HORIZONS_DAYS, or retrain"
            )
        self.generation = generation
        self.settings = settings
        self._inputs = Inputs(generation.manifest, generation.files, features)
        self._knots_ms = np.array([round(d * DAY_MS) for d in settings.silence_days], np.int64)
        if self._knots_ms[0] != 0 or (np.diff(self._knots_ms) <= 0).any():
            raise GenerationError("silence_days must start at 0 and rise")
        self._size = generation.model.carry_size
        shape = (len(self._knots_ms), len(horizons))
        self.last_dtype = np.dtype(
            [("revision", "<i8"), ("as_of_ms", "<i8"), ("expected", "<f4", shape)]
        )
        head = [("version", "u1"), ("flags", "u1"), ("settled", "<f4", (self._size,))]
        self._short = np.dtype([*head, ("last", self.last_dtype)])
        self._long = np.dtype([*head, ("head", "<f4", (self._size,)), ("last", self.last_dtype)])

    def start(self, n: int) -> Floats:
        """Carries of `n` users without an event."""
        return np.zeros((n, self._size), np.float32)

    def advance(self, folded: Folded, settled: Floats, head: Floats) -> tuple[Floats, Floats]:
        """Both carries after the fold's steps; the input is left alone.

        An erasure may have wiped the settled part; a head that must be refolded starts again
        from the settled carry.
        """
        if not self._size:
            return settled, head
        settled = np.where(folded.settled_reset[:, None], np.float32(0), settled)
        settled = self._step(settled, folded.settled_steps)
        head = np.where(folded.head_reset[:, None], settled, head)
        return settled, self._step(head, folded.head_steps)

    def _step(self, carries: Floats, steps: Steps) -> Floats:
        if not len(steps.rows):
            return carries
        return self.generation.model.advance(carries, steps.rows, steps.tokens)

    def features(self, states: States, when_ms: npt.NDArray[np.int64]) -> Floats:
        """(U, K, F) what the generation reads of users at `when_ms` (U, K)."""
        return self._inputs.encode(states, when_ms)

    def rescore(self, states: States, carries_head: Floats, as_of_ms: Times) -> Prediction:
        """Values of all users now and at each knot of silence."""
        when = as_of_ms[:, None] + self._knots_ms
        return self.generation.model.predict(carries_head, self.features(states, when))

    def now(self, states: States, carries_head: Floats, as_of_ms: Times) -> Prediction:
        """Values of all users at one time alone, without what silence will make of them."""
        when = as_of_ms[:, None]
        return self.generation.model.predict(carries_head, self.features(states, when))

    def previous_at(self, last: Last, as_of_ms: Times) -> Floats:
        """What the last document says of `as_of_ms` by its silence curve: (U, H).

        Linear between knots; before the first knot the first value, after the last the last.
        Rows of users without a document (revision 0) are 0.
        """
        since = np.where(last["revision"] > 0, as_of_ms - last["as_of_ms"], 0)
        since = np.maximum(since, 0)
        knots = self._knots_ms
        left = np.clip(np.searchsorted(knots, since, side="right") - 1, 0, max(len(knots) - 2, 0))
        right = np.minimum(left + 1, len(knots) - 1)
        span = np.maximum(knots[right] - knots[left], 1)
        share = np.clip((since - knots[left]) / span, 0, 1).astype(np.float32)[:, None]
        rows = np.arange(len(last))
        curve = last["expected"]
        out: Floats = curve[rows, left] * (1 - share) + curve[rows, right] * share
        return out

    def due_ms(self, prediction: Prediction, as_of_ms: Times, headline: int) -> Times:
        """When silence will have moved the headline by `republish_share`; NO_TIME if never.

        headline: index of the horizon that ranks users. Linear between knots.
        """
        curve = prediction.expected[:, :, headline].astype(np.float64)
        start = np.maximum(curve[:, :1], 1e-9)
        moved = np.abs(curve - curve[:, :1]) / start
        beyond = moved >= self.settings.republish_share
        ever = beyond.any(axis=1)
        right = np.argmax(beyond, axis=1)
        left = np.maximum(right - 1, 0)
        rows = np.arange(len(curve))
        # the change crosses the threshold on one side: |change| may start on the other one
        side = np.sign(curve[rows, right] - curve[:, 0])
        goal = curve[:, 0] + side * self.settings.republish_share * start[:, 0]
        low, high = curve[rows, left], curve[rows, right]
        share = np.clip((goal - low) / np.where(high == low, 1, high - low), 0, 1)
        knots = self._knots_ms
        at = as_of_ms + knots[left] + np.ceil(share * (knots[right] - knots[left])).astype(np.int64)
        return np.where(ever, at, NO_TIME)

    def last(self, revision: int, as_of_ms: Times, prediction: Prediction) -> Last:
        """What is kept of the documents that are made of `prediction`."""
        out = np.empty(len(as_of_ms), self.last_dtype)
        out["revision"] = revision
        out["as_of_ms"] = as_of_ms
        out["expected"] = prediction.expected
        return out

    def no_last(self, n: int) -> Last:
        """`last` of users who never had a document: revision 0."""
        out = np.zeros(n, self.last_dtype)
        out["as_of_ms"] = NO_TIME
        return out

    def pack(
        self, settled: Floats, head: Floats, last: Last, has_tail: npt.NDArray[np.bool_]
    ) -> list[bytes]:
        """The scorer's part of each user's row; the head's carry only where there is a tail."""
        long = has_tail if self._size else np.zeros(len(last), bool)
        if not long.any():
            return self._rows(self._short, settled, None, last)
        if long.all():
            return self._rows(self._long, settled, head, last)
        out: list[bytes] = [b""] * len(last)
        for dtype, rows in ((self._short, np.flatnonzero(~long)), (self._long, long.nonzero()[0])):
            parts = self._rows(dtype, settled[rows], head[rows], last[rows])
            for row, part in zip(rows.tolist(), parts, strict=True):
                out[row] = part
        return out

    def _rows(
        self, dtype: np.dtype[np.void], settled: Floats, head: Floats | None, last: Last
    ) -> list[bytes]:
        table = np.empty(len(last), dtype)
        table["version"] = PACKED
        table["flags"] = HAS_HEAD if dtype is self._long else 0
        table["settled"] = settled
        if dtype is self._long:
            table["head"] = head
        table["last"] = last
        whole, size = table.tobytes(), dtype.itemsize
        return [whole[i : i + size] for i in range(0, len(whole), size)]

    def unpack(self, blobs: Sequence[bytes | None]) -> tuple[Floats, Floats, Last]:
        """(settled (U, C), head (U, C), last (U,)) of packed rows; None is a new user."""
        n = len(blobs)
        settled, head, last = self.start(n), self.start(n), self.no_last(n)
        sizes = np.fromiter((len(b) if b else 0 for b in blobs), np.int64, n)
        found = sizes == 0
        for dtype, flag in ((self._short, 0), (self._long, HAS_HEAD)):
            rows = np.flatnonzero(sizes == dtype.itemsize)
            if not len(rows) or (flag and not self._size):
                continue
            joined = b"".join([blobs[i] for i in rows.tolist()])  # type: ignore[misc]
            table = np.frombuffer(joined, dtype)
            if (table["version"] != PACKED).any() or (table["flags"] != flag).any():
                break
            settled[rows] = table["settled"]
            head[rows] = table["head"] if flag else table["settled"]
            last[rows] = table["last"]
            found[rows] = True
        if not found.all():
            raise CarryError(
                "a carry in the store is not of this version, generation or knots of silence: run"
                " the worker with the generation and LIVEVALUE_MODEL__SILENCE_DAYS that the store"
                " was folded with, or build the store anew"
            )
        return settled, head, last
