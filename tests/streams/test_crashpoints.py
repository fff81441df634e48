"""Each named place (streams/crashpoints.py) is where it says: what a death there would leave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from featurestore.backends.memory import MemoryStore
from livevalue.embedded import Stack
from scoring.generation import prior
from scoring.scorer import Scorer
from streams import held, pipeline, sweep, upkeep
from streams.backfill import backfill_files, builder
from streams.claim import Claims
from streams.intake import Intake
from streams.log import FileLog
from streams.publish import Publisher
from streams.succession import Succession
from tests.streams.owning import CLEAN, START_MS, Owning, one_partition
from tests.streams.passing import Left, Passing
from tests.streams.test_succession import build_aside, followed, purchase_line

COMMITTED = Left(seq=1, outbox=(0, 1))
BATCH = {
    "after_load": Left(),
    "after_compute": Left(),
    "before_commit": Left(),
    "after_commit": COMMITTED,
    "before_ack": COMMITTED,
    "before_publish": COMMITTED,
    "in_transaction": Left(seq=1, outbox=(0, 1), sent=1),
    "before_trim": Left(seq=1, outbox=(0, 1), published=1, said=1, sent=1),
    "after_trim": Left(seq=1, outbox=(1,), known=1, published=1, said=1, sent=1),
}


@pytest.fixture
async def owning(stack: Stack, topic_prefix: str) -> AsyncIterator[Owning]:
    async with Owning(one_partition(stack.bootstrap, topic_prefix), as_live=True) as made:
        yield made


async def test_a_batch_passes_each_place_where_its_name_says(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_WATCH_S", 3600.0)  # which loads, too
    owner = owning.own()
    await owning.send(40)
    await owning.settle()
    found: dict[str, Left] = {}
    behind: dict[str, int] = {}

    def look(here: str) -> None:
        found[here], behind[here] = passing.left(), owner.lag

    passing = Passing(owning, monkeypatch, look)
    passing.tell(MemoryStore, "load")
    passing.tell(pipeline, "fold")
    passing.tell(Scorer, "rescore")
    passing.tell(MemoryStore, "commit")
    passing.tell(Intake, "commit")
    passing.tell(AIOKafkaProducer, "begin_transaction")
    passing.tell(AIOKafkaProducer, "commit_transaction")
    passing.tell(MemoryStore, "trim")
    await owning.send(1)
    await owning.settle()
    assert found == BATCH
    assert passing.steps == [
        *("load()", "after_load", "fold()", "rescore()", "after_compute"),
        *("before_commit", "commit()", "after_commit", "before_ack", "commit()"),
        *("before_publish", "begin_transaction()", "in_transaction", "commit_transaction()"),
        *("before_trim", "trim()", "after_trim"),
    ]
    assert [here for here, lag in behind.items() if lag] == list(BATCH)[:5]  # not acknowledged
    assert await owning.audit() == CLEAN


async def test_a_claim_passes_each_place_where_its_name_says(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[object] = []
    first = owning.own()
    await owning.send(40)
    await owning.settle()
    with monkeypatch.context() as patched:
        # Dead between the transaction and its trim.
        Passing(
            owning,
            patched,
            lambda at: kept.append(owning.backing.snapshot()) if at == "before_trim" else None,
        )
        await owning.send(1)
        await owning.settle()
        await first.close(drain=True)
    owning.backing.restore(kept[0])
    found: dict[str, tuple[bool, int, int]] = {}

    def look(here: str) -> None:
        token = owning.backing.partition(0).folds["main"].token
        found[here] = (token != before, passing.epoch() - epoch, passing.left().known)

    passing = Passing(owning, monkeypatch, look)
    before, epoch = owning.backing.partition(0).folds["main"].token, passing.epoch()
    passing.tell(MemoryStore, "claim")
    passing.tell(Publisher, "start")
    passing.tell(Publisher, "last_published")
    passing.tell(Claims, "_reconcile")
    passing.tell(MemoryStore, "trim")
    owner = owning.own()
    await owning.until(lambda: owner.ready)
    assert found == {
        "claim_token": (True, 0, 0),
        "claim_producer": (True, 1, 0),
        "claim_published": (True, 1, 0),
    }
    assert passing.left().known == 1
    assert passing.steps == [
        *("claim()", "claim_token", "start()", "claim_producer", "last_published()"),
        *("claim_published", "_reconcile()", "trim()"),
    ]
    assert await owning.audit() == CLEAN


async def test_a_roll_back_is_made_good_page_by_page_before_anything_is_said(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "REFRESH_USERS", 15)
    first = owning.own()
    await owning.send(40)
    await owning.settle()
    before = owning.backing.snapshot()
    await owning.send(40)
    await owning.settle()
    await first.close(drain=True)
    found: list[tuple[int, int, int]] = []

    def look(here: str) -> None:
        if here == "make_good_page":
            left = passing.left()
            found.append((left.seq, left.published, left.said))

    passing = Passing(owning, monkeypatch, look)
    passing.tell(held.Held, "refresh")
    owning.backing.restore(before)
    owning.own()
    await owning.until(lambda: len(found) == 3)
    await owning.settle()
    pages = [step for step in passing.steps if step in ("refresh()", "make_good_page")]
    assert pages == ["refresh()", "make_good_page"] * 3
    low = found[0][0]
    assert low > 0, "seq is beyond what was published"
    assert found == [(low, 0, 0), (low + 1, 0, 0), (low + 2, 0, 0)]
    assert await owning.audit() == CLEAN


async def test_a_flip_passes_each_place_where_its_name_says(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAGE", 25)
    stores = followed(owning)
    owner = owning.own()
    await owning.send(80)
    await owning.settle()
    stores["aside"] = await build_aside(owning, "aside")
    await owning.send(20)
    await owning.settle()
    shared = owning.backing.partition(0)
    main, aside = shared.folds["main"], shared.folds["aside"]
    before = aside.token
    found: dict[str, tuple[bool | int | str | None, ...]] = {}

    def look(here: str) -> None:
        if here not in found and aside.watermark and main.watermark and owner.watermark:
            found[here] = (
                shared.active,
                aside.token != before,
                main.watermark.positions[0] - aside.watermark.positions[0],
                owning.metrics.claims._value.get() - claims,
                shared.seq - owner.watermark.identity.seq,
            )

    claims = owning.metrics.claims._value.get()
    passing = Passing(owning, monkeypatch, look)
    passing.tell(Succession, "_make_equal")
    passing.tell(MemoryStore, "flip")
    await owning.store.set_next(0, "aside")
    await owning.until(lambda: passing.steps.count("sweep_page") >= 2)
    await owning.settle()
    ours = ("_make_equal()", "before_flip", "flip()", "after_flip")
    assert [step for step in passing.steps if step in ours] == list(ours)
    places = ("takeover_claimed", "before_flip", "after_flip", "sweep_page")
    assert {here: found[here] for here in places} == {
        "takeover_claimed": ("main", True, 20, 0, 0),
        "before_flip": ("main", True, 0, 0, 0),
        "after_flip": ("aside", True, 0, 0, 0),
        "sweep_page": ("aside", True, 0, 1, 1),  # committed, and not told
    }
    assert await owning.audit() == CLEAN


async def test_a_builder_passes_its_place_behind_the_commit_of_each_step(
    owning: Owning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.jsonl"
    old.write_text("".join(purchase_line(f"old{n}") for n in range(60)))
    await owning.send(80)
    held_at: list[tuple[int, int]] = []

    def look(here: str) -> None:
        if here == "backfill_step":
            fold = owning.backing.partition(0).folds["aside"]
            mark = fold.watermark
            held_at.append((mark.positions[0] if mark else -1, len(fold.states)))

    Passing(owning, monkeypatch, look)
    aside = MemoryStore("aside", owning.backing)
    made = builder(aside, owning.settings, prior(owning.settings.model))
    await backfill_files(made, FileLog([old], owning.settings), [old], START_MS)
    await build_aside(owning, "aside")
    assert held_at == [(0, 60), (80, 100)]
