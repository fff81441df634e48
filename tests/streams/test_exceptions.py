"""Users whom the order of reading topics may change are excepted by name, and nobody else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from featurestore.backends.memory import MemoryStore
from featurestore.settings import FeatureSettings
from featurestore.state import States
from featurestore.store import Listed, Watermark
from scoring.generation import prior
from scoring.scorer import Scorer
from streams.pipeline import Pipeline, Positions
from streams.row import split
from streams.settings import Settings
from streams.verify import Verified, _Pages
from tests.featurestore.logs import HOUR_MS, START_MS, Record, batch_of
from tests.featurestore.test_fold_rules import event

Batch = tuple[Sequence[Record], Sequence[int]]  # records, and the sources that are idle


class Side:
    """A memory store and its pipeline, fed by hand; the live one publishes documents."""

    def __init__(self, settings: Settings, *, live: bool) -> None:
        scorer = Scorer(prior(settings.model), settings.model, settings.features)
        self.store = MemoryStore("main" if live else "verify")
        self.pipeline = Pipeline(self.store, scorer, settings, publishes=live)
        self.sources = len(settings.kafka.sources)

    async def take(self, batches: Sequence[Batch]) -> None:
        """Fold these, one commit each."""
        token = (await self.store.claim(0)).token
        mark: Watermark | None = None
        for n, (records, idle) in enumerate(batches, 1):
            rests = tuple(s in idle for s in range(self.sources))
            after = Positions((n,) * self.sources, ("",) * self.sources, "log", rests)
            done = await self.pipeline.process(0, token, mark, after, batch_of(records), [])
            assert done.outcome == "OK"
            mark = done.watermark

    async def row(self, user: str) -> tuple[bytes, bytes]:
        """State and carry as they lie in the store."""
        held = (await self.store.load(0, [user])).states[0]
        assert held is not None
        return split(held)


async def found(
    live: Sequence[Batch],
    log: Sequence[Batch],
    *,
    cap: int = 256,
    damage: str = "",
    spoil: Callable[[bytes | None], bytes | None] = lambda document: document,
    lacking: bool = False,
    **moved: Any,
) -> Verified:
    """What `verify` says of ada, folded live in one order and from the log in another."""
    settings = Settings(features=FeatureSettings(tail_cap=cap))
    ours, theirs = Side(settings, live=True), Side(settings, live=False)
    await ours.take(live)
    await theirs.take(log)
    state, carry = await ours.row("ada")
    if damage:
        states = States.decode(["ada"], [state])
        for side in (states.settled, states.head):
            side[damage] += 1
        state = states.encode()[0]
    listed = (await ours.store.listed(0, ["ada"]))[0]
    document = spoil(listed.document)
    shown = Listed() if document is None else replace(listed, document=document, **moved)
    what = Verified()
    pages = _Pages(settings, theirs.pipeline, what, 0, lacking=lacking)
    assert not pages.compare([("ada", (state, carry), await theirs.row("ada"), shown)], last=True)
    return what


def said(source: int, hour: float, identity: int, *, value: int = 0) -> Record:
    e = event(hour, identity, value=value, source=source)
    return Record(source, identity, "ada", e.record_ms, e)


def erased(source: int, hour: float) -> Record:
    return Record(source, 999, "ada", START_MS + int(hour * HOUR_MS), None)


# Source 0 runs on while source 1 stands still; then 1 brings what belongs between.
AHEAD = [said(0, hour, hour, value=10**6) for hour in (1, 2, 150, 300)]
BEHIND = [said(1, 100, 90), said(1, 290, 91)]
AT_ONCE: list[Batch] = [([AHEAD[0], AHEAD[1], BEHIND[0], *AHEAD[2:], BEHIND[1]], ())]


async def test_event_of_an_idle_source_behind_the_frontier_is_excepted_as_such() -> None:
    what = await found([(AHEAD, (1, 2)), (BEHIND, ())], AT_ONCE)
    assert dict(what.excepted) == {
        "tail_cap": 0,
        "idle_source": 1,
        "erased_amid_settled": 0,
        "compacted": 0,
    }
    assert (what.users, what.different) == (1, 0)


async def test_user_beyond_the_tail_cap_is_excepted_as_such() -> None:
    many = [said(0, hour, hour) for hour in range(1, 40)]
    between = said(1, 5.5, 90)
    live: list[Batch] = [(many, ()), ([between], ())]
    log: list[Batch] = [([*many[:5], between, *many[5:]], ())]
    what = await found(live, log, cap=4)
    assert dict(what.excepted) == {
        "tail_cap": 1,
        "idle_source": 0,
        "erased_amid_settled": 0,
        "compacted": 0,
    }
    assert what.different == 0


async def test_erasure_amid_settled_records_excepts_what_it_took_with_it() -> None:
    history: Batch = ([*AHEAD, said(0, 500, 5)], (1, 2))
    erasure: Batch = ([erased(1, 1.5)], ())
    what = await found([history, erasure], [erasure, history])
    assert dict(what.excepted) == {
        "tail_cap": 0,
        "idle_source": 0,
        "erased_amid_settled": 1,
        "compacted": 0,
    }
    assert what.different == 0


async def test_exact_field_that_differs_is_never_put_down_to_the_order_of_reading() -> None:
    what = await found([(AHEAD, (1, 2)), (BEHIND, ())], AT_ONCE, damage="gross_micro")
    assert not any(what.excepted.values())
    assert what.different == 1
    assert "gross_micro" in what.first_differences[0]["differs"]


async def test_user_whom_no_order_of_reading_can_change_is_excepted_by_nothing() -> None:
    assert (await found(AT_ONCE, AT_ONCE)).different == 0
    what = await found(AT_ONCE, AT_ONCE, damage="sessions")
    assert not any(what.excepted.values())
    assert what.different == 1


async def test_a_rank_and_a_date_that_are_not_the_document_s_are_excepted_by_nothing() -> None:
    idle: list[Batch] = [(AHEAD, (1, 2)), (BEHIND, ())]
    for live in (AT_ONCE, idle):
        for moved, said in (({"rank": 1.0}, "rank"), ({"due_ms": START_MS}, "due date")):
            what = await found(live, AT_ONCE, **moved)
            assert (what.different, what.first_differences[0]["differs"]) == (1, [said])


def _another_value(document: bytes | None) -> bytes:
    told = json.loads(document or b"{}")
    told["values"]["d30"]["expected"] += 1000
    return json.dumps(told).encode()


async def test_a_document_that_does_not_follow_from_its_own_state_is_excepted_by_nothing() -> None:
    idle: list[Batch] = [(AHEAD, (1, 2)), (BEHIND, ())]
    for spoil in (_another_value, lambda document: None):
        what = await found(idle, AT_ONCE, spoil=spoil)
        assert (what.different, sum(what.excepted.values())) == (1, 0)


SPLIT: list[Batch] = [([*AHEAD, said(0, 500, 5)], (1, 2)), ([erased(1, 1.5)], ())]


async def test_a_user_whose_erasure_split_is_not_excused_for_whatever_else_is_wrong() -> None:
    later: list[Batch] = [*SPLIT, ([said(0, 600, 6, value=10**6)], (1, 2))]
    assert (await found(later, later)).different == 0
    for damage in ("orders", "refunds"):
        what = await found(later, later, damage=damage)
        assert (what.different, sum(what.excepted.values())) == (1, 0), damage
    readable = await found(SPLIT, SPLIT, spoil=lambda document: b'{"revision": 1}')
    assert (readable.different, sum(readable.excepted.values())) == (1, 0)


WHOLE: list[Batch] = [([said(0, hour, hour, value=10**6) for hour in (1, 2, 3)], ())]
LEFT: list[Batch] = [(WHOLE[0][0][2:], ())]


async def test_a_compacted_log_excuses_what_it_may_have_lost_and_no_more() -> None:
    what = await found(WHOLE, LEFT, lacking=True)
    assert (what.different, what.excepted["compacted"]) == (0, 1)
    # One that has lost nothing, or holds what the store does not, or has made no document.
    for live, log, lacking in ((WHOLE, LEFT, False), (LEFT, WHOLE, True)):
        what = await found(live, log, lacking=lacking)
        assert (what.different, sum(what.excepted.values())) == (1, 0)
    what = await found(WHOLE, LEFT, lacking=True, spoil=_another_value)
    assert (what.different, sum(what.excepted.values())) == (1, 0)
    assert what.first_differences[0]["differs"] == [".values.d30.expected"]


async def test_an_erasure_that_was_compacted_away_is_no_difference() -> None:
    erasure: Batch = ([erased(1, 4)], ())
    what = await found([*WHOLE, erasure], WHOLE, lacking=True)
    assert (what.different, what.excepted["compacted"]) == (0, 1)
    assert (await found([*WHOLE, erasure], WHOLE)).different == 1
