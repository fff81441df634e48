"""Rows of users at moments, through the fold, and training rows as they were known at a cut-off.

Each is folded once and kept, since every model of an evaluation asks for the same.

Shapes: U users of the log, H horizons; rows as in scoring.training.examples. Times are integer
milliseconds, UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from scoring.errors import TooLittleData
from scoring.interface import Prediction
from scoring.judging.cutoffs import BadQuestion, Ints, choose_cutoffs, stamp
from scoring.judging.history import DAY, before
from scoring.judging.metrics import Values
from scoring.judging.question import Case, net_horizons
from scoring.training.examples import ExampleBuilder, Examples
from scoring.training.forecasts import Forecast
from scoring.training.rows import LEAST_USERS


class PointInTime:
    """What models learn from and are asked about at one cut-off."""

    def __init__(self, case: Case, as_of_ms: int, moments_ms: Sequence[int]) -> None:
        """`moments_ms`: at which users are to be scored, none after `as_of_ms`."""
        self._case, self._as_of = case, as_of_ms
        self._horizons = net_horizons(case.question.horizons_days)
        self._moments = np.unique(np.array(moments_ms, np.int64))

    @property
    def delay_ms(self) -> int:
        """How late events had been by then: so much older must labels be."""
        return self._case.history.delay_ms(self._as_of)

    def users(self, moment_ms: int) -> Examples:
        """All users seen before a moment."""
        rows = self._asked_about
        window = int(np.searchsorted(self._moments, moment_ms))
        return rows.rows(rows.window == window)

    @cached_property
    def _asked_about(self) -> Examples:
        return self._build(self._moments, 0)

    @cached_property
    def training(self) -> Examples:
        """Training rows, marked mature as they were at the cut-off."""
        delay, start, longest = self.delay_ms, self._case.history.start_ms, max(self._horizons)
        asked = self._case.question.cutoffs_ms
        if asked is None:
            cutoffs = choose_cutoffs(start, self._as_of, longest, delay)
        else:
            cutoffs = np.array(asked, np.int64)
        cutoffs = cutoffs[cutoffs + min(self._horizons) * DAY + delay <= self._as_of]
        if not len(cutoffs):
            raise BadQuestion(
                f"no training cut-off has a window that ends by {stamp(self._as_of)}:"
                " take earlier --train-cutoffs"
            )
        made = self._build(cutoffs, delay)
        if made.scarce:
            raise TooLittleData(
                f"each horizon needs {LEAST_USERS} users with a training window that ends by"
                f" {stamp(self._as_of)}, there are {made.scarce}: take earlier --train-cutoffs"
                " (later ones where hardly anybody had come yet) or a shorter --horizon"
            )
        return made

    def spread(self, rows: Examples, made: Prediction, days: int) -> Forecast:
        """Of one horizon, over all U users; whom the fold did not know then is worth 0."""
        names, h = self._case.history.users, self._horizons.index(days)
        at = np.array([names[rows.users[u]] for u in rows.user.tolist()], np.int64)

        def over_all(values: npt.NDArray[np.float32]) -> Values:
            out = np.zeros(len(names))
            out[at] = values
            return out

        return Forecast(
            over_all(made.expected[:, 0, h]),
            over_all(made.p_active[:, 0, h]),
            over_all(made.if_active[:, h, 0]),
            over_all(made.if_active[:, h, 2]),
        )

    def _build(self, cutoffs_ms: Ints, delay_ms: int) -> Examples:
        builder = ExampleBuilder(
            self._case.features,
            self._case.sources,
            [days * DAY // 1000 for days in self._horizons],
            cutoffs_ms,
            log_start_ms=self._case.history.start_ms,
            lateness_ms=delay_ms,
        )
        for partition, batch in before(self._case.log, self._as_of):
            builder.add(partition, batch)
        # the log is known up to the cut-off, though its last event may lie before
        return builder.finish(self._as_of)
