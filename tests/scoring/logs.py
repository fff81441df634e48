"""Small logs for the tests of training and evaluation: shoppers drawn from a known process."""

import numpy as np

from featurestore.columns import EVENT, STEPS, EventBatch, Kind

DAY = 86_400_000
START = 1_000_000 * 1000  # a Monday is not needed; midnight is not either


def shoppers(
    users: int = 600, days: int = 240, seed: int = 0, size: int = 500, delay_ms: int = 0
) -> list[tuple[int, EventBatch]]:
    """Poisson buyers with their own rate, leaving date and order value, some refunds."""
    rng = np.random.default_rng(seed)
    start = START // DAY * DAY
    user, time, micro = [], [], []
    for u in range(users):
        began = rng.uniform(0, days * 0.5)
        rate, left = rng.gamma(0.7, 1 / 14), began + rng.exponential(90)
        worth = rng.lognormal(3, 0.7)
        until = min(left, days)
        n = 1 + rng.poisson(rate * max(until - began, 0))
        at = np.concatenate([[began], rng.uniform(began, max(until, began), n - 1)])
        for t in np.sort(at):
            user.append(u)
            time.append(start + int(t * DAY))
            micro.append(round(worth * rng.lognormal(0, 0.3) * 100) * 10_000)
            if rng.random() < 0.03:
                user.append(u)
                time.append(start + int((t + 2) * DAY))
                micro.append(-micro[-1])
    order = np.argsort(np.array(time), kind="stable")
    out = []
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        events = np.zeros(len(rows), EVENT)
        events["time_ms"] = np.array(time)[rows]
        events["record_ms"] = events["time_ms"] + delay_ms
        events["id_hi"], events["id_lo"] = rows + 1, 7
        events["value_micro"] = np.array(micro)[rows]
        events["kind"], events["flags"] = Kind.PURCHASE, STEPS
        names, row = np.unique(np.array(user)[rows], return_inverse=True)
        batch = EventBatch(
            [f"u{n}" for n in names],
            row.astype(np.int32),
            events,
            np.arange(begin, begin + len(rows)),
            events["record_ms"].copy(),
            [],
            [str(r) for r in rows],
        )
        out.append((0, batch))
    return out
