"""Law 4: the log decides the result. Not the order in which topics are read, nor batches."""

from __future__ import annotations

import json

import pytest

from featurestore.digest import exact_fields
from streams.codec import Codec
from tests.featurestore.logs import assert_same_side
from tests.parity.nasty import START_MS, Laid, Quiet, Sent, laid, nasty
from tests.parity.playing import (
    Order,
    Played,
    all_differences,
    by_clock,
    cuts,
    generation,
    settings,
)

SHAPES = [
    pytest.param(mixed, partitions, id=f"{'mixed' if mixed else 'three'}-{partitions}")
    for mixed in (True, False)
    for partitions in (1, 3, 8)
]
SILENT = [
    pytest.param(Quiet(), id="all-topics"),
    pytest.param(Quiet(idle="interaction"), id="one-falls-silent"),
    pytest.param(Quiet(never="interaction"), id="one-never-had-a-record"),
]


async def reference(log: Laid, mixed: bool, partitions: int) -> Played:
    made = Played(settings(mixed, partitions), generation())
    return await made.play(log, by_clock(log, Codec(made.settings), 17))


@pytest.mark.parametrize(("mixed", "partitions"), SHAPES)
@pytest.mark.parametrize("batch", [17, 4096])
async def test_interleavings_batches_and_restarts_change_nothing(
    mixed: bool, partitions: int, batch: int
) -> None:
    log = laid(nasty(600, seed=partitions), settings(mixed, partitions).kafka)
    expected = await reference(log, mixed, partitions)
    digest, documents = await expected.digest(), await expected.documents()
    for name in ("applied", "applied_late", "duplicate", "conflict", "late", "future", "erased"):
        assert expected.counts[name] > 0, name
    assert len(documents) > 50
    # One topic has one order; what is left are the batches and the restarts.
    orders: tuple[Order, ...] = ("random",) if mixed else ("random", "ahead", "ahead-reversed")
    for seed, order in enumerate(orders):
        other = Played(settings(mixed, partitions), generation())
        await other.play(log, cuts(log, order, batch, seed), restart_every=5)
        assert await other.digest() == digest, order
        assert not all_differences(await other.documents(), documents), order


@pytest.mark.parametrize(
    ("silent", "order"),
    [
        (Quiet(), "random"),
        (Quiet(idle="interaction"), "ahead"),
        (Quiet(never="interaction"), "ahead-reversed"),
    ],
)
async def test_one_event_a_batch_is_the_same_as_many(silent: Quiet, order: Order) -> None:
    log = laid(nasty(300, users=25, seed=3, quiet=silent), settings(False, 1).kafka)
    expected = await reference(log, False, 1)
    other = Played(settings(False, 1), generation())
    await other.play(log, cuts(log, order, 1, 7), restart_every=50)
    assert await other.digest() == await expected.digest()
    assert not all_differences(await other.documents(), await expected.documents())


@pytest.mark.parametrize("silent", SILENT)
async def test_a_topic_that_falls_silent_or_never_spoke_changes_nothing(
    silent: Quiet,
) -> None:
    log = laid(nasty(600, seed=9, quiet=silent), settings(False, 3).kafka)
    expected = await reference(log, False, 3)
    other = Played(settings(False, 3), generation())
    await other.play(log, cuts(log, "ahead", 400, 1), restart_every=3)
    assert await other.digest() == await expected.digest()
    assert not all_differences(await other.documents(), await expected.documents())


@pytest.mark.parametrize(("mixed", "partitions"), [(True, 1), (False, 1), (False, 3)])
@pytest.mark.parametrize("order", ["random", "ahead"])
async def test_the_path_holds_what_the_slow_twin_says(
    mixed: bool, partitions: int, order: Order
) -> None:
    log = laid(nasty(700, users=30, seed=5), settings(mixed, partitions).kafka)
    played = Played(settings(mixed, partitions), generation(), twins={})
    await played.play(log, cuts(log, order, 60, 2), restart_every=7)
    assert played.twins
    seen = 0
    for p, twin in played.twins.items():
        states = await played.states(p)
        exact = exact_fields(states)
        for u, name in enumerate(states.users):
            head = twin.users[name].head(twin.settings)
            assert (int(exact["id_hi"][u]), int(exact["id_lo"][u])) == (head.id_hi, head.id_lo)
            assert_same_side(states.head[u], head, twin.settings)
            seen += 1
    assert seen > 20


@pytest.mark.parametrize("mixed", [True, False])
async def test_an_erased_user_holds_only_what_was_produced_after_the_erase(mixed: bool) -> None:
    sent = nasty(1200, users=40, seed=11)
    shape = settings(mixed, 1)
    log = laid(sent, shape.kafka)
    played = Played(shape, generation())
    await played.play(log, cuts(log, "random", 50, 4))
    documents = await played.documents()
    for gone in [s for s in sent if s.value is None]:
        user = gone.key.decode()
        after = [s for s in sent if s.key == gone.key and s.value and s.timestamp > gone.timestamp]
        state = await played.states(0)
        head = state.head[state.users.index(user)]
        assert int(head["counts"].sum()) <= len(after)
        assert int(head["first_record_ms"]) > gone.timestamp
        assert user in documents


@pytest.mark.parametrize("batches", [[1, 1, 1], [1, 2]], ids=["on its own", "with the return"])
async def test_who_returns_after_an_erasure_is_compared_with_nothing_from_before_it(
    batches: list[int],
) -> None:
    shape = settings(True, 1)

    def purchase(name: str, at: int) -> Sent:
        said = {"type": "purchase", "event_id": name, "user_id": "ada", "amount": "5"}
        value = json.dumps(said | {"event_time": START_MS + at}).encode()
        return Sent("purchase", b"ada", value, START_MS + at)

    erase = Sent("purchase", b"ada", None, START_MS + 2)
    log = laid([purchase("a", 1), erase, purchase("b", 3)], shape.kafka)
    played = Played(shape, generation())
    await played.play(log, iter([(0, [(0, count)]) for count in batches]))
    document = json.loads(await played.store.document(0, "ada") or b"")
    assert document["history"]["orders"] == 1
    assert document["previous"] is None
