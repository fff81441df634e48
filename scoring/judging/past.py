"""What may be known at a cut-off: the log as it stood then, and earlier cut-offs to learn from.

Everything that a baseline sees comes from here, so that none can look at what came later.

Shapes: U users of the whole log, those not seen yet included: rows are History's. Times are
integer milliseconds, UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from scoring.judging.cutoffs import choose_cutoffs
from scoring.judging.history import DAY, History, NetBy, Window
from scoring.judging.orders import Orders, orders

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Past:
    """Make it with `of`; `history` holds nothing that came at or after `as_of_ms`."""

    history: History
    as_of_ms: int
    net_by: NetBy
    cutoffs_ms: tuple[int, ...] | None = None  # to learn from; None: chosen by horizon

    @classmethod
    def of(
        cls,
        history: History,
        as_of_ms: int,
        net_by: NetBy,
        cutoffs_ms: Sequence[int] | None = None,
    ) -> Past:
        """The part of a log that had arrived before a cut-off."""
        asked = None if cutoffs_ms is None else tuple(cutoffs_ms)
        return cls(history.upto(as_of_ms), as_of_ms, net_by, asked)

    @cached_property
    def orders(self) -> Orders:
        """(U,) of every user; of those not seen yet, nothing."""
        history = self.history
        return orders(
            history.user,
            history.time_ms,
            history.value,
            len(history.users),
            self.as_of_ms,
            self.net_by == "user-day",
        )

    @cached_property
    def seen(self) -> Bools:
        """(U,) users of whom anything is known."""
        out = np.zeros(len(self.history.users), bool)
        out[self.history.user] = True
        return out

    @cached_property
    def buyers(self) -> Bools:
        """(U,) users with an order."""
        return self.orders.buyer

    def earlier(self, days: int) -> Iterator[tuple[Past, Window]]:
        """Earlier cut-offs and what users did in the `days` after each, known by now."""
        delay = self.history.delay_ms(self.as_of_ms)
        if self.cutoffs_ms is None:
            chosen = choose_cutoffs(self.history.start_ms, self.as_of_ms, days, delay).tolist()
        else:
            last = self.as_of_ms - days * DAY - delay
            chosen = [at for at in self.cutoffs_ms if at <= last]
        for at in chosen:
            window = self.history.window(at, at + days * DAY, self.net_by)
            yield Past.of(self.history, at, self.net_by), window
