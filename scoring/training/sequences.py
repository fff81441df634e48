"""Token sequences of a fold: what steps each user's carry, in the order of the head at a cut-off.

The carry itself is not kept, since the net that makes it is still to be trained. Cut-offs of one
user share one sequence as long as the later order only extends the earlier one; a late event that
re-orders it begins a new one.

Shapes: S steps of Q sequences end to end, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.fold import Folded, Steps
from featurestore.vector import TOKENS
from scoring.interface import Floats

Ints = npt.NDArray[np.int64]

_TOKEN_BYTES = 4 * len(TOKENS)


@dataclass(slots=True)
class _Open:
    """A sequence that later cut-offs may extend."""

    index: int
    tokens: bytes


class Sequences:
    """Follows a fold, users by number; `at` takes what a user's carry has seen by now."""

    def __init__(self) -> None:
        self._settled: dict[int, bytearray] = {}
        self._head: dict[int, bytearray] = {}
        self._open: dict[int, _Open] = {}
        self._closed: list[bytes] = []  # (Q,) empty while open

    def step(self, folded: Folded, index: Ints) -> None:
        """Append a fold's steps as the scorer applies them to carries.

        `index`: number of each of the fold's users, -1 for one who is left out.
        """
        for user in index[np.flatnonzero(folded.settled_reset)].tolist():
            self._settled.pop(user, None)
        _append(self._settled, folded.settled_steps, index)
        for user in index[np.flatnonzero(folded.head_reset)].tolist():
            if user >= 0:
                self._head[user] = self._settled.get(user, bytearray()).copy()
        _append(self._head, folded.head_steps, index)

    def at(self, user: int) -> tuple[int, int]:
        """(sequence, position) of a user's head: the open sequence where it only grew."""
        now = bytes(self._head.get(user, b""))
        open_ = self._open.get(user)
        if open_ is not None and now.startswith(open_.tokens):
            open_.tokens = now
        else:
            if open_ is not None:
                self._closed[open_.index] = open_.tokens
            open_ = self._open[user] = _Open(len(self._closed), now)
            self._closed.append(b"")
        return open_.index, len(now) // _TOKEN_BYTES

    def joined(self) -> tuple[Floats, Ints]:
        """(S, T) tokens of all sequences end to end, and (Q + 1,) where each starts."""
        for open_ in self._open.values():
            self._closed[open_.index] = open_.tokens
        lengths = np.array([len(tokens) // _TOKEN_BYTES for tokens in self._closed], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return np.frombuffer(b"".join(self._closed), np.float32).reshape(-1, len(TOKENS)), starts


def _append(to: dict[int, bytearray], steps: Steps, index: Ints) -> None:
    raw = np.ascontiguousarray(steps.tokens, np.float32).tobytes()
    for at, user in enumerate(index[steps.rows].tolist()):
        if user >= 0:
            tokens = to.get(user)
            if tokens is None:
                tokens = to[user] = bytearray()
            tokens += raw[at * _TOKEN_BYTES : (at + 1) * _TOKEN_BYTES]
