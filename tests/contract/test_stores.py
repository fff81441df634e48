"""What every backend promises about several stores, reading in pages, and what lies beside."""

from __future__ import annotations

from dataclasses import replace

import pytest

from featurestore.errors import StoreError
from featurestore.store import Commit, CommitOutcome, FeatureStore, Identity, Listed, Meta, Write
from tests.contract.deployments import Deployment, commit, mark, write


async def _side_by_side(deployment: Deployment) -> tuple[FeatureStore, FeatureStore, str, str]:
    """Store main, active at seq 3, and store aside, built to equal positions in one step."""
    main, aside = deployment.open(), deployment.open("aside")
    claim = await main.claim(0)
    before = None
    for seq in (1, 2, 3):
        before = await commit(main, claim, before, write("ada", f"main {seq}", due_ms=seq))
    assert before is not None
    build = await aside.claim(0)
    built = mark(1, build.token, before.positions)
    await commit(aside, build, None, write("ada", "aside"), publishes=False, after=built)
    return main, aside, claim.token, build.token


async def test_flip_moves_the_readers_and_back(deployment: Deployment) -> None:
    main, aside, token, other = await _side_by_side(deployment)
    await main.trim(0, token, Identity(2, token))
    assert await main.flip(0, token, "aside", other) == CommitOutcome.OK
    assert await main.active(0) == await aside.active(0) == "aside"

    # The other store goes on under our identity, so that seq and revisions never go back.
    claim = await aside.claim(0)
    assert claim.watermark is not None
    assert claim.watermark.identity == Identity(3, token)
    assert claim.watermark.published == Identity(2, token)
    assert [entry.identity.seq for entry in claim.outbox] == [2, 3]
    assert await aside.document(0, "ada") == b"document main 3"
    after = mark(4, claim.token)
    await commit(aside, claim, claim.watermark, write("ada", "aside 4"), after=after)
    assert await main.document(0, "ada") == b"document aside 4"
    assert (await main.load(0, ["ada"])).states == [b"state main 3"]

    # Back is the same move, once the old store has caught up.
    catch = await main.claim(0)
    assert catch.outbox == ()
    assert catch.watermark is not None
    assert await aside.flip(0, claim.token, "main", catch.token) == CommitOutcome.STALE
    caught = mark(4, catch.token)
    await commit(main, catch, catch.watermark, write("ada", "m4"), publishes=False, after=caught)
    assert await aside.flip(0, claim.token, "main", catch.token) == CommitOutcome.OK
    assert await aside.active(0) == "main"
    held = (await main.load(0, [])).watermark
    assert held is not None
    assert held.identity == Identity(4, claim.token)
    await commit(main, catch, held, write("ada", "main 5"), after=mark(5, catch.token))
    assert await aside.document(0, "ada") == b"document main 5"


async def test_flip_takes_both_tokens(deployment: Deployment) -> None:
    main, aside, token, other = await _side_by_side(deployment)
    assert await main.flip(0, "stale", "aside", other) == CommitOutcome.FENCED
    assert await main.flip(0, token, "aside", "stale") == CommitOutcome.FENCED
    assert await aside.flip(0, other, "main", token) == CommitOutcome.FENCED
    assert await main.active(0) == "main"


async def test_flip_takes_equal_positions(deployment: Deployment) -> None:
    main, aside, token, other = await _side_by_side(deployment)
    held = (await main.load(0, [])).watermark
    assert held is not None
    moved = mark(4, token, (31, 30, 30))
    step = Commit(token, held, moved)
    assert await main.commit(0, step) == CommitOutcome.OK
    assert await main.flip(0, token, "aside", other) == CommitOutcome.STALE
    assert await main.flip(0, token, "nowhere", "") == CommitOutcome.FENCED
    assert await main.active(0) == "main"
    assert (await aside.load(0, ["ada"])).states == [b"state aside"]


async def test_flip_takes_the_same_log(deployment: Deployment) -> None:
    main, aside = deployment.open(), deployment.open("aside")
    claim, build = await main.claim(0), await aside.claim(0)
    await commit(main, claim, None, write("ada"))
    other = mark(1, build.token, log_id="recreated")
    await commit(aside, build, None, write("ada"), publishes=False, after=other)
    assert await main.flip(0, claim.token, "aside", build.token) == CommitOutcome.RESET


async def test_the_old_writer_is_fenced_by_a_flip(deployment: Deployment) -> None:
    main, _, token, other = await _side_by_side(deployment)
    held = (await main.load(0, [])).watermark
    await main.flip(0, token, "aside", other)
    step = Commit(token, held, mark(4, token), [write("ada", "late")])
    assert await main.commit(0, step) == CommitOutcome.FENCED
    assert await main.trim(0, token, Identity(3, token)) is False
    assert await main.document(0, "ada") == b"document main 3"


async def test_an_erased_user_is_erased_in_each_store_by_its_own_fold(
    deployment: Deployment,
) -> None:
    main, aside, token, other = await _side_by_side(deployment)
    held = (await main.load(0, [])).watermark
    built = (await aside.load(0, [])).watermark
    await commit(
        main, await main.claim(0), held, Write("ada", b"marker", b""), after=mark(4, token)
    )
    await commit(
        aside,
        await aside.claim(0),
        built,
        Write("ada", b"marker aside"),
        publishes=False,
        after=mark(2, other, (40,) * 3),
    )
    assert await main.document(0, "ada") is None
    assert await main.top(0, 5) == []
    assert (await main.load(0, ["ada"])).states == [b"marker"]
    assert (await aside.load(0, ["ada"])).states == [b"marker aside"]


async def test_the_announced_store_is_taken_back_by_its_flip(deployment: Deployment) -> None:
    main, aside, token, other = await _side_by_side(deployment)
    assert await main.next(0) is None
    await main.set_next(0, "aside")
    assert await aside.next(0) == "aside"
    await main.flip(0, token, "aside", other)
    assert await main.next(0) is None
    await main.set_next(0, "main")
    await main.set_next(0, None)
    assert await main.next(0) is None


async def test_drop_is_refused_on_the_active_store(deployment: Deployment) -> None:
    main, _, token, _ = await _side_by_side(deployment)
    with pytest.raises(StoreError, match="serves readers"):
        await main.drop(0)
    assert (await main.load(0, ["ada"])).states == [b"state main 3"]
    assert (await main.load(0, [])).token == token


async def test_drop_leaves_nothing_of_a_store_and_everything_else(deployment: Deployment) -> None:
    main, aside, _, other = await _side_by_side(deployment)
    near = deployment.open("aside-2")
    claim = await near.claim(0)
    await commit(near, claim, None, write("ada", "near"), publishes=False)
    elsewhere = await aside.claim(1)
    await commit(aside, elsewhere, None, write("ada", "partition 1"), publishes=False, partition=1)
    built = (await aside.load(0, [])).watermark
    assert built is not None
    many = [write(f"user {i}", due_ms=i) for i in range(2500)]
    fold = await aside.claim(0)
    await commit(aside, fold, built, *many, publishes=False, after=mark(2, other, built.positions))
    assert await aside.drop(0) >= 2501
    assert await aside.scan(0, "", 10) == ([], "")
    assert await aside.due(0, 1 << 50, 10) == []
    assert (await aside.load(0, ["ada"])).watermark is None
    # Its writer is out, and a new one begins from nothing.
    step = Commit(fold.token, None, mark(3, fold.token), [write("ada")], publishes=False)
    assert await aside.commit(0, step) == CommitOutcome.FENCED
    assert (await aside.claim(0)).watermark is None
    assert (await near.load(0, ["ada"])).states == [b"state near"]
    assert (await aside.load(1, ["ada"])).states == [b"state partition 1"]
    assert (await main.load(0, ["ada"])).states == [b"state main 3"]
    assert [info.name for info in await main.stores()] == ["aside", "aside-2", "main"]
    await aside.drop(1)
    await aside.drop(1)
    assert [info.name for info in await main.stores()] == ["aside-2", "main"]


@pytest.mark.parametrize("with_meta", [False, True])
async def test_stores_are_listed_with_where_they_stand(
    deployment: Deployment, with_meta: bool
) -> None:
    main, aside, _, _ = await _side_by_side(deployment)
    claim = await main.claim(5)
    await commit(main, claim, None, partition=5)
    if with_meta:
        await main.set_meta(META)
    listed = await aside.stores()
    assert [(i.name, i.active, i.generation, i.fingerprint, i.positions) for i in listed] == [
        ("aside", False, "3f9c", "fingerprint", {0: (30, 30, 30)}),
        ("main", True, "3f9c", "fingerprint", {0: (30, 30, 30), 5: (10, 10, 10)}),
    ]


async def test_due_users_come_earliest_first_and_once_written_again_later(
    deployment: Deployment,
) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    moments = {"c": 300, "a": 100, "b": 200, "never": None}
    before = await commit(store, claim, None, *(write(u, due_ms=t) for u, t in moments.items()))
    assert await store.due(0, 99, 9) == []
    assert await store.due(0, 250, 9) == ["a", "b"]
    assert await store.due(0, 1 << 52, 2) == ["a", "b"]
    await commit(
        store, claim, before, write("a", due_ms=1_700_000_000_123), write("b", due_ms=None)
    )
    assert await store.due(0, 1_700_000_000_122, 9) == ["c"]
    assert await store.due(0, 1_700_000_000_123, 9) == ["c", "a"]


async def test_top_is_by_rank(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    ranks = {"low": -1.25, "high": 1e12, "tiny": 5e-324, "none": None, "mid": 0.1}
    await commit(store, claim, None, *(write(u, rank=r) for u, r in ranks.items()))
    assert await store.top(0, 3) == [("high", 1e12), ("mid", 0.1), ("tiny", 5e-324)]
    assert await store.top(0, 0) == []
    assert len(await store.top(0, 99)) == 4


async def test_a_scan_pages_through_every_user_once(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    users = {f"user {i}" for i in range(1234)}
    await commit(store, claim, None, *(write(u) for u in users))
    seen: list[str] = []
    cursor, pages = "", 0
    while True:
        page, cursor = await store.scan(0, cursor, 100)
        seen += page
        pages += 1
        if not cursor:
            break
    assert sorted(seen) == sorted(users)
    assert pages > 5


async def test_whoever_has_a_document_is_found_by_the_store_that_does_not_know_him(
    deployment: Deployment,
) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    users = {f"user {i}" for i in range(1234)}
    before = await commit(store, claim, None, *(write(u) for u in users), write("gone"))
    gone = replace(write("gone"), document=b"")
    last = await commit(store, claim, before, gone)
    aside = deployment.open("aside")
    seen: set[str] = set()
    cursor = ""
    while True:
        page, cursor = await aside.scan_documents(0, cursor, 100)
        seen.update(page)
        # What goes on the way hides nobody who stays.
        wipes = [Write(user, b"", b"") for user in page[:10] if user in users]
        last = await commit(store, claim, last, *wipes)
        if not cursor:
            break
    assert seen == users
    assert (await aside.scan(0, "", 10)) == ([], "")


META = Meta(
    schema=1,
    partitions=8,
    partitioner="murmur2",
    unit={"kind": "money", "code": "GBP"},
    horizons=("d7", "d30", "d90"),
    store="main",
    clock="log",
    extra={"since": "2011"},
)


async def test_meta_is_what_was_set(deployment: Deployment) -> None:
    store = deployment.open()
    assert await store.meta() is None
    await store.set_meta(META)
    assert await deployment.open("aside").meta() == META
    await store.set_meta(replace(META, clock="wall"))
    assert await store.meta() == replace(META, clock="wall")


async def test_blobs_are_shared_by_stores(deployment: Deployment) -> None:
    store = deployment.open()
    assert await store.blob("model/3f9c") is None
    data = bytes(range(256)) * 5000
    await store.put_blob("model/3f9c", data)
    assert await deployment.open("aside").blob("model/3f9c") == data


async def test_documents_of_nobody_are_none(deployment: Deployment) -> None:
    store = deployment.open()
    assert await store.documents(0, []) == []
    assert await store.documents(0, ["ada", "bob"]) == [None, None]


async def test_what_is_listed_of_a_user_is_read_at_once_and_the_date_is_the_store_s_own(
    deployment: Deployment,
) -> None:
    main, aside, *_ = await _side_by_side(deployment)
    claim = await aside.claim(0)
    assert claim.watermark is not None
    later = mark(2, claim.token, claim.watermark.positions)
    bob = write("bob", "b", due_ms=(1 << 52) + 1)
    await commit(aside, claim, claim.watermark, bob, publishes=False, after=later)
    ada = Listed(b"document main 3", 1.0, 3)
    assert await main.listed(0, ["bob", "ada"]) == [Listed(), ada]
    assert await aside.listed(0, ["ada", "bob"]) == [
        replace(ada, due_ms=None),
        Listed(due_ms=(1 << 52) + 1),
    ]
    assert await main.listed(0, []) == []


async def test_a_state_of_a_store_that_does_not_serve_is_replaced_only_where_it_is_as_read(
    deployment: Deployment,
) -> None:
    main, aside, *_ = await _side_by_side(deployment)
    claim = await aside.claim(0)
    assert claim.watermark is not None
    later = mark(2, claim.token, claim.watermark.positions)
    more = (write("bob", "b", due_ms=5), write("eve", "e", due_ms=5))
    await commit(aside, claim, claim.watermark, *more, publishes=False, after=later)
    assert await main.others(0) == await aside.others(0) == ["aside"]
    rows = [("bob", b"state b", b"gone"), ("eve", b"another", b"gone"), ("nobody", b"", b"gone")]
    assert await main.sibling("aside").forget(0, rows) == 1
    assert (await aside.load(0, ["bob", "eve", "nobody"])).states == [b"gone", b"state e", None]
    assert await aside.due(0, 9, 9) == ["eve"]
    assert await main.forget(0, [("ada", b"state main 3", b"gone")]) == 0
    assert (await main.load(0, ["ada"])).states == [b"state main 3"]
