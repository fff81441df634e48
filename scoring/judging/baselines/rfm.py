"""RFM quintiles: the segments of direct mail, valued by what each went on to spend.

Buyers are cut into fifths by recency (of the last order), frequency (orders) and monetary value
(spent so far), each at its cut-off; a user is in one of 125 cells. A cell's value is the mean of
what its users spent in the horizon after earlier cut-offs. Cells that few users were in are drawn
to the mean of their recency and frequency, and that to the mean of all, by `SHRINK` users each:
the mean of three wholesalers is no forecast. Users without an order are a cell of their own.

Source: Hughes 1994, "Strategic database marketing"; with learned cell means as in Fader, Hardie &
Lee 2005, "RFM and CLV: using iso-value curves".

Shapes: U users of the log, 126 cells.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featurestore.wording import counted
from scoring.judging.cutoffs import BadQuestion, stamp
from scoring.judging.metrics import Values
from scoring.judging.past import Past
from scoring.training.forecasts import Forecast

FIFTHS = 5
CELLS = FIFTHS**3 + 1  # the last: no order yet
SHRINK = 20.0

Cells = npt.NDArray[np.int64]


def rfm(past: Past, days: int) -> Forecast:
    """The mean future spend of a user's RFM cell at earlier cut-offs."""
    users, spent, active = (np.zeros(CELLS) for _ in range(3))
    for then, window in past.earlier(days):
        seen = then.seen
        cell = cells(then)[seen]
        users += np.bincount(cell, minlength=CELLS)
        spent += np.bincount(cell, window.value[seen], minlength=CELLS)
        active += np.bincount(cell, window.active[seen], minlength=CELLS)
    if not users.any():
        raise BadQuestion(
            f"rfm learns from a window of {counted(days, 'day')} that ends by"
            f" {stamp(past.as_of_ms)}, and there is none: take earlier --train-cutoffs, a later"
            " --as-of or a shorter --horizon"
        )
    own = cells(past)
    return Forecast(_means(users, spent)[own], _means(users, active)[own])


def cells(past: Past) -> Cells:
    """(U,) cell of each user."""
    known = past.orders
    out = np.full(len(known), CELLS - 1, np.int64)
    buyer = known.buyer
    if buyer.any():
        since = (known.age - known.recency)[buyer]
        recency, frequency = fifths(-since), fifths(known.repeat[buyer])
        monetary = fifths(known.total[buyer])
        out[buyer] = (recency * FIFTHS + frequency) * FIFTHS + monetary
    return out


def fifths(values: Values) -> Cells:
    """Fifth of each value, 4 the highest; equal values are in one fifth.

    >>> fifths(np.array([1.0, 1.0, 1.0, 2.0, 9.0])).tolist()
    [0, 0, 0, 3, 4]
    """
    below = np.searchsorted(np.sort(values), values, side="left")
    return below * FIFTHS // len(values)


def _means(users: Values, total: Values) -> Values:
    """(CELLS,) means, each drawn to the coarser one."""
    everybody = total.sum() / users.sum()
    of_rf = [a[:-1].reshape(-1, FIFTHS).sum(1) for a in (users, total)]
    coarse = (of_rf[1] + SHRINK * everybody) / (of_rf[0] + SHRINK)
    towards = np.append(np.repeat(coarse, FIFTHS), everybody)
    out: Values = (total + SHRINK * towards) / (users + SHRINK)
    return out
