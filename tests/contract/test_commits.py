"""What every store promises about claim, load, commit and trim."""

from __future__ import annotations

from dataclasses import replace

import pytest

from featurestore.errors import StoreError, StoreUnavailable
from featurestore.store import Commit, CommitOutcome, FeatureStore, Identity, Letter, Write
from tests.contract.deployments import Deployment, commit, mark, write

AWKWARD = [
    "two words",
    'a "quoted" one',
    "it's",
    "a,b",
    "line\nbreak\r\n",
    "tab\tnul\0end",
    "ünïcödé 使用者 🦜",
    "{7}:v:x",
    "*?[a-z]\\",
    "$5",
    "-1",
    "u" * 256,
]


async def _everything(store: FeatureStore, users: list[str]) -> object:
    """All that a commit may change, without a claim (which would write a token)."""
    loaded = await store.load(0, users)
    return (
        loaded,
        await store.documents(0, users),
        await store.top(0, 100),
        await store.due(0, 1 << 52, 100),
        await store.active(0),
        await store.scan(0, "", 1000),
    )


async def test_a_new_store_holds_nothing(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    assert (claim.watermark, claim.outbox) == (None, ())
    loaded = await store.load(0, ["ada"])
    assert (loaded.token, loaded.watermark, loaded.states) == (claim.token, None, [None])
    assert await store.active(0) is None


async def test_a_commit_is_read_back_as_it_was_written(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    letters = [Letter(0, 7, "late"), Letter(2, 1 << 53, "not_json")]
    published = Identity(0, "before")
    after = mark(1, claim.token, published=published, progress='{"sweep": "ada"}')
    await commit(store, claim, None, write("ada", "1", 2.5, 99), letters=letters, after=after)

    loaded = await store.load(0, ["ada", "bob"])
    assert loaded.token == claim.token
    assert loaded.watermark == after
    assert loaded.states == [b"state 1", None]
    again = await deployment.open().claim(0)
    assert again.token != claim.token
    assert again.watermark == after
    assert [(e.identity, e.users, e.letters) for e in again.outbox] == [
        (Identity(1, claim.token), ("ada",), tuple(letters))
    ]
    assert await store.document(0, "ada") == b"document 1"
    assert await store.top(0, 9) == [("ada", 2.5)]
    assert await store.due(0, 99, 9) == ["ada"]
    assert await store.active(0) == "main"


async def test_partitions_do_not_see_each_other(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    await commit(store, claim, None, write("ada"))
    assert (await store.load(1, ["ada"])).states == [None]
    assert await store.document(1, "ada") is None
    assert await store.scan(1, "", 10) == ([], "")


async def test_a_later_claim_fences_the_earlier_writer(deployment: Deployment) -> None:
    store, taker = deployment.open(), deployment.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada", "1"))
    await taker.claim(0)
    held = await _everything(store, ["ada"])
    step = Commit(claim.token, before, mark(2, claim.token), [write("ada", "2")])
    assert await store.commit(0, step) == CommitOutcome.FENCED
    assert await store.trim(0, claim.token, before.identity) is False
    assert await _everything(store, ["ada"]) == held


async def test_a_writer_without_a_claim_is_fenced(deployment: Deployment) -> None:
    store = deployment.open()
    step = Commit("somebody", None, mark(1, "somebody"), [write("ada")])
    assert await store.commit(0, step) == CommitOutcome.FENCED


@pytest.mark.parametrize("wrong", ["positions", "seq", "writer", "nothing"])
async def test_a_commit_on_another_state_than_expected_is_stale(
    deployment: Deployment, wrong: str
) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    first = await commit(store, claim, None, write("ada", "1"))
    second = await commit(store, claim, first, write("ada", "2"))
    expected = {
        "positions": replace(second, positions=first.positions),
        "seq": replace(second, identity=Identity(1, claim.token)),
        "writer": replace(second, identity=Identity(2, "another")),
        "nothing": None,
    }[wrong]
    held = await _everything(store, ["ada"])
    step = Commit(claim.token, expected, mark(3, claim.token), [write("ada", "3")])
    assert await store.commit(0, step) == CommitOutcome.STALE
    assert await _everything(store, ["ada"]) == held


async def test_a_commit_that_expects_a_watermark_where_none_is_is_stale(
    deployment: Deployment,
) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    step = Commit(claim.token, mark(1, "x"), mark(2, claim.token), [write("ada")])
    assert await store.commit(0, step) == CommitOutcome.STALE
    assert (await store.load(0, ["ada"])).states == [None]


async def test_a_log_of_another_identity_is_a_reset(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada", "1"))
    held = await _everything(store, ["ada"])
    after = mark(2, claim.token, log_id="recreated")
    step = Commit(claim.token, before, after, [write("ada", "2")])
    assert await store.commit(0, step) == CommitOutcome.RESET
    assert await _everything(store, ["ada"]) == held


async def test_an_answer_that_was_lost_leaves_all_or_nothing(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada", "1"))
    lossy = await deployment.open_lossy()
    after = mark(2, claim.token)
    step = Commit(claim.token, before, after, [write("ada", "2")], [Letter(0, 3, "late")])
    with pytest.raises(StoreUnavailable):
        await lossy.commit(0, step)
    again = await store.claim(0)
    assert again.watermark == after
    assert [entry.identity for entry in again.outbox] == [before.identity, after.identity]
    assert await store.document(0, "ada") == b"document 2"
    # Made again on what it expected: found out, not applied twice.
    assert await store.commit(0, replace(step, token=again.token)) == CommitOutcome.STALE


async def test_a_batch_without_users_moves_only_positions(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada", "1", 3.0, 50))
    after = await commit(store, claim, before)
    loaded = await store.load(0, ["ada"])
    assert (loaded.watermark, loaded.states) == (after, [b"state 1"])
    assert await store.document(0, "ada") == b"document 1"
    assert await store.due(0, 50, 9) == ["ada"]
    assert (await store.claim(0)).outbox[-1].identity == after.identity


async def test_a_step_need_not_move_a_position(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada", "1"))
    after = mark(2, claim.token, before.positions, progress="half")
    await commit(store, claim, before, write("ada", "2"), after=after)
    assert (await store.load(0, [])).watermark == after


async def test_documents_are_left_set_and_deleted(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    users = ["left", "set", "unranked", "erased"]
    before = await commit(store, claim, None, *(write(u, "1", 1.0) for u in users))
    await commit(
        store,
        claim,
        before,
        Write("left", b"state 2", None, 7.0),
        write("set", "2", -2.0),
        write("unranked", "2", None),
        Write("erased", b"marker", b"", 9.0),
    )
    assert await store.documents(0, users) == [b"document 1", b"document 2", b"document 2", None]
    assert await store.top(0, 9) == [("unranked", 1.0), ("left", 1.0), ("set", -2.0)]
    assert (await store.load(0, ["left", "erased"])).states == [b"state 2", b"marker"]
    again = await store.claim(0)
    assert again.outbox[-1].users == ("set", "unranked", "erased")


async def test_an_empty_state_is_deleted(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada", due_ms=5), write("bob"))
    await commit(store, claim, before, Write("ada", b"", b""))
    assert (await store.load(0, ["ada"])).states == [None]
    assert await store.scan(0, "", 10) == (["bob"], "")
    assert await store.due(0, 10, 10) == []


async def test_any_bytes_and_any_user_id_come_back(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    blob = bytes(range(256)) * 20 + b"\r\n$-1\r\n\0"
    writes = [Write(u, blob + u.encode(), u.encode(), float(i)) for i, u in enumerate(AWKWARD)]
    await commit(store, claim, None, *writes)
    assert (await store.load(0, AWKWARD)).states == [blob + u.encode() for u in AWKWARD]
    assert await store.documents(0, AWKWARD) == [u.encode() for u in AWKWARD]
    again = await store.claim(0)
    assert again.outbox[0].users == tuple(AWKWARD)
    assert [user for user, _ in await store.top(0, 99)] == AWKWARD[::-1]
    assert sorted((await store.scan(0, "", 99))[0]) == sorted(AWKWARD)


async def test_nine_thousand_users_fit_in_one_commit(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    users = [f"user {i}" for i in range(9000)]
    writes = [write(u, str(i), float(i), i) for i, u in enumerate(users)]
    before = await commit(store, claim, None, *writes)
    assert (await store.load(0, users)).states == [w.state for w in writes]
    assert await store.top(0, 2) == [("user 8999", 8999.0), ("user 8998", 8998.0)]
    again = await store.claim(0)
    assert again.outbox[0].users == tuple(users)
    assert await store.document(0, "user 4711") == b"document 4711"
    gone = [Write(u, b"", b"") for u in users]
    await commit(store, again, before, *gone)
    assert await store.scan(0, "", 10) == ([], "")
    assert await store.top(0, 10) == []


@pytest.mark.parametrize(
    ("writes", "change"),
    [
        ([write("ada", "2", float("nan"))], {}),
        ([write("ada", "2", float("inf"))], {}),
        ([write("ada", "2"), write("ada", "3")], {}),
        ([write("")], {}),
        ([write("ada \ud800")], {}),
        ([write("ada", "2")], {"clocks": (1,)}),
        ([write("ada", "2")], {"marks": ()}),
        ([write("ada", "2")], {"idle": (True,)}),
        ([write("ada", "2")], {"positions": (1, 1, 1)}),
        ([write("ada", "2")], {"positions": (20, 20), "clocks": (1, 1), "marks": ("", "")}),
        ([write("ada", "2")], {"identity": Identity(1, "again")}),
    ],
)
async def test_a_malformed_commit_leaves_nothing_behind(
    deployment: Deployment, writes: list[Write], change: dict[str, object]
) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada", "1"))
    held = await _everything(store, ["ada", "bob"])
    after = replace(mark(2, claim.token), **change)  # type: ignore[arg-type]
    step = Commit(claim.token, before, after, [write("bob", "2"), *writes])
    with pytest.raises(StoreError):
        await store.commit(0, step)
    assert await _everything(store, ["ada", "bob"]) == held


async def test_trim_keeps_the_published_entry_and_writes_its_identity(
    deployment: Deployment,
) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    before = None
    steps = []
    for seq in range(1, 6):
        before = await commit(store, claim, before, write("ada", str(seq)), write(f"u{seq}"))
        steps.append(before.identity)
    assert await store.trim(0, claim.token, steps[2]) is True
    again = await store.claim(0)
    assert [entry.identity for entry in again.outbox] == steps[2:]
    assert again.watermark is not None
    assert again.watermark.published == steps[2]
    # Trimmed up to the same once more, as after a claim: nothing changes.
    assert await store.trim(0, again.token, steps[2]) is True
    assert [entry.identity for entry in (await store.claim(0)).outbox] == steps[2:]


async def test_trim_drops_nothing_up_to_an_entry_that_is_not_there(
    deployment: Deployment,
) -> None:
    """The published commit was rolled back: what stands in the outbox is not published."""
    store = deployment.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada"))
    foreign = Identity(before.identity.seq, "another writer")
    assert await store.trim(0, claim.token, foreign) is True
    again = await store.claim(0)
    assert [entry.identity for entry in again.outbox] == [before.identity]
    assert again.watermark is not None
    assert again.watermark.published == foreign


async def test_a_commit_in_flight_does_not_undo_a_trim(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    first = await commit(store, claim, None, write("ada"))
    second = await commit(store, claim, first, write("ada"))
    await store.trim(0, claim.token, second.identity)
    stale = replace(mark(3, claim.token), published=first.identity)
    await commit(store, claim, second, write("ada"), after=stale)
    held = (await store.load(0, [])).watermark
    assert held == replace(stale, published=second.identity)


async def test_a_roll_back_takes_states_positions_and_outbox_together(
    deployment: Deployment,
) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    first = await commit(store, claim, None, write("ada", "1", 1.0, 5))
    snapshot = deployment.snapshot()
    held = await _everything(store, ["ada", "bob"])
    second = await commit(store, claim, first, write("ada", "2", 2.0, 6), write("bob", "2"))
    await store.trim(0, claim.token, second.identity)

    deployment.restore(snapshot)
    assert await _everything(store, ["ada", "bob"]) == held
    again = await store.claim(0)
    assert again.watermark == first
    # This is how the worker tells: what was published is not in the outbox.
    assert second.identity not in [entry.identity for entry in again.outbox]
    # It goes on beyond the published seq, from the positions that Redis holds.
    after = mark(3, again.token, (20, 20, 20))
    await commit(store, again, first, write("bob", "3"), after=after)
    assert (await store.load(0, ["bob"])).states == [b"state 3"]


async def test_a_builder_writes_states_and_nothing_for_readers(deployment: Deployment) -> None:
    store, aside = deployment.open(), deployment.open("aside")
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada", "1", 1.0, 5))
    build = await aside.claim(0)
    assert (build.watermark, build.outbox) == (None, ())
    built = await commit(aside, build, None, write("ada", "b", 9.0, 7), publishes=False)
    assert (await aside.load(0, ["ada"])).states == [b"state b"]
    assert (await aside.load(0, [])).watermark == built
    assert await aside.due(0, 9, 9) == ["ada"]
    assert await store.documents(0, ["ada"]) == [b"document 1"]
    assert await store.top(0, 9) == [("ada", 1.0)]
    assert await store.active(0) == "main"
    again = await store.claim(0)
    assert again.watermark == before
    assert len(again.outbox) == 1


async def test_a_builder_does_not_make_its_store_active(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada", "1"), publishes=False)
    assert await store.active(0) is None
    assert await store.document(0, "ada") is None
    # The worker that takes the built store over does.
    await commit(store, claim, before, write("ada", "2"))
    assert await store.active(0) == "main"


async def test_a_builder_is_refused_on_the_active_store(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada", "1"))
    held = await _everything(store, ["ada"])
    step = Commit(claim.token, before, mark(2, claim.token), [write("ada", "2")], publishes=False)
    with pytest.raises(StoreError, match="serves readers"):
        await store.commit(0, step)
    assert await _everything(store, ["ada"]) == held


async def test_a_publisher_into_an_aside_store_is_fenced(deployment: Deployment) -> None:
    store, aside = deployment.open(), deployment.open("aside")
    await commit(store, await store.claim(0), None, write("ada", "1"))
    build = await aside.claim(0)
    step = Commit(build.token, None, mark(1, build.token), [write("ada", "2")])
    assert await aside.commit(0, step) == CommitOutcome.FENCED
    assert (await aside.load(0, ["ada"])).states == [None]
    assert await store.document(0, "ada") == b"document 1"
