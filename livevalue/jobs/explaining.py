"""explain: what each recent event does to a user's value.

Recent events are those of the tail: they are kept one by one, because their order may still
change. The user is folded again from the settled side without one of them, and scored as of the
same time as the document that stands; the difference is that event's doing. What is older is
folded for good and cannot be taken apart. Single changes need not add up: values are not linear.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore import times
from featurestore.columns import LATE, Kind
from featurestore.events import ACTIONS
from featurestore.fold_settings import FoldSettings
from featurestore.partitioner import partition
from featurestore.rows import Rows, copied, pick, put, starts_of
from featurestore.state import States
from featurestore.step import step, tokens
from livevalue.output import Refused
from scoring.scorer import Scorer
from streams.row import split
from streams.settings import Settings
from streams.stores import Stores


async def explain(settings: Settings, user: str) -> dict[str, Any]:
    """The user's value now, and without each recent event; strongest first."""
    kafka = settings.kafka
    stores = Stores(settings)
    try:
        p = partition(user, kafka.partitions, kafka.partitioner)
        pipeline = await stores.pipeline_for(p)
        row = (await pipeline.store.load(p, [user])).states[0]
        if row is None:
            raise Refused(f"nothing is known of user {user!r}: no event of theirs has been folded")
        blob, score = split(row)
        states = States.decode([user], [blob])
        if not states.known()[0]:
            raise Refused(f"user {user!r} was erased: there is nothing to explain")
        return _explained(settings, pipeline.scorer, states, score)
    finally:
        await stores.close()


def _explained(settings: Settings, scorer: Scorer, states: States, score: bytes) -> dict[str, Any]:
    settled, _, last = scorer.unpack([score])
    events = states.tail.row(0)
    variants, left = without_each(states)
    fold = FoldSettings.of(settings.features, settings.kafka.sources)
    heads = np.repeat(settled, len(variants.users), axis=0)
    variants, heads = refold(variants, heads, scorer, fold)
    as_of = max(int(states.head["last_ms"][0]), int(last["as_of_ms"][0]))
    when = np.full(len(variants.users), as_of, np.int64)
    expected = scorer.rescore(variants, heads, when).expected[:, 0]  # (V, H): now
    names = [f"d{days}" for days in settings.model.horizons_days]
    headline = names.index(settings.model.headline)

    def values(of: npt.NDArray[np.floating[Any]]) -> dict[str, float]:
        return {name: float(f"{x:.5g}") for name, x in zip(names, of, strict=True)}

    reasons = [
        {
            "type": Kind(int(event["kind"])).name.lower(),
            "action": _action(int(event["action"])),
            "event_time": times.text(int(event["time_ms"])),
            "topic": settings.kafka.sources[int(event["source"])],
            "value": int(event["value_micro"]) / 1e6,
            "late": bool(event["flags"] & LATE),
            "without": values(expected[at]),
            "change": values(expected[0] - expected[at]),
        }
        for at, event in zip(left, events, strict=True)
    ]
    order = np.argsort(-np.abs(expected[0, headline] - expected[left, headline]), kind="stable")
    whole, old = states.head["counts"][0].sum(), states.settled["counts"][0].sum()
    return {
        "user_id": states.users[0],
        "as_of": times.text(as_of),
        "headline": names[headline],
        "values": values(expected[0]),
        "without_recent": values(expected[-1]),
        "events": int(whole),
        "older": int(old),
        "generation": scorer.generation.id,
        "reasons": [reasons[i] for i in order.tolist()],
    }


def without_each(states: States) -> tuple[States, npt.NDArray[np.intp]]:
    """One user as several, heads yet to be folded, and the rows that lack one event.

    The first row is the user as is, the last one lacks every event of the tail.
    """
    tail = states.tail.row(0)
    count = len(tail)
    every = np.arange(count)
    parts = [every, *(np.delete(every, i) for i in range(count)), every[:0]]
    many = states.select(np.zeros(len(parts), np.intp))
    many.tail = Rows(pick(tail, np.concatenate(parts)), starts_of(np.array([*map(len, parts)])))
    many.head = copied(many.settled)
    return many, np.arange(1, count + 1)


def refold(
    states: States, carries: npt.NDArray[np.float32], scorer: Scorer, settings: FoldSettings
) -> tuple[States, npt.NDArray[np.float32]]:
    """Heads folded from the settled sides and the tails, and the carries with them."""
    some = np.flatnonzero(states.has_tail())
    head = copied(states.settled)
    if len(some):
        part = pick(head, some)
        starts = starts_of(states.tail.lengths[some])
        owner, made = tokens(part, starts, states.tail.values)
        step(part, starts, states.tail.values, settings)
        put(head, some, part)
        if carries.shape[1] and len(owner):
            rows = some[owner].astype(np.int32)
            carries = scorer.generation.model.advance(carries, rows, made)
    states.head = head
    return states, carries


def _action(code: int) -> str | None:
    if not code:
        return None
    return ACTIONS[code - 1] if code <= len(ACTIONS) else "other"
