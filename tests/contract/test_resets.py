"""What every store promises about a reset: recovery writes a watermark by force."""

from __future__ import annotations

from dataclasses import replace

from featurestore.store import Commit, CommitOutcome, FeatureStore, Identity, Letter, Watermark
from tests.contract.deployments import Deployment, commit, mark, write

_PUBLISHED = Identity(2, "before")


async def _three_commits(store: FeatureStore) -> Watermark:
    claim = await store.claim(0)
    held = None
    for seq in (1, 2, 3):
        step = write(f"user {seq}", f"{seq}", float(seq), due_ms=seq)
        held = await commit(store, claim, held, step, letters=[Letter(0, seq, "late")])
    assert held is not None
    return held


async def test_a_kept_store_goes_on_at_other_positions_of_another_log(
    deployment: Deployment,
) -> None:
    store = deployment.open()
    await _three_commits(store)
    await store.set_next(0, "aside")
    claim = await store.claim(0)
    after = mark(9, claim.token, (0, 30, 5), log_id="made again", progress='{"sweep": ""}')
    assert (
        await store.reset(0, claim.token, after, wipe=False, published=_PUBLISHED)
        == CommitOutcome.OK
    )

    again = await deployment.open().claim(0)
    assert again.watermark == replace(after, published=_PUBLISHED)
    assert [(e.identity, e.users, e.letters) for e in again.outbox] == [(_PUBLISHED, (), ())]
    assert (await store.load(0, ["user 1"])).states == [b"state 1"]
    assert await store.document(0, "user 1") == b"document 1"
    assert [user for user, _ in await store.top(0, 9)] == ["user 3", "user 2", "user 1"]
    assert await store.due(0, 9, 9) == ["user 1", "user 2", "user 3"]
    assert await store.next(0) is None
    moved = mark(10, again.token, (1, 30, 5), log_id="made again")
    await commit(store, again, again.watermark, write("user 1", "new"), after=moved)
    assert await store.document(0, "user 1") == b"document new"


async def test_a_wiped_store_holds_its_new_watermark_alone(deployment: Deployment) -> None:
    store, other = deployment.open(), deployment.open("other")
    await _three_commits(store)
    build = await other.claim(0)
    await commit(other, build, None, write("ada", "aside"), publishes=False)
    claim = await store.claim(0)
    after = mark(4, claim.token, (0, 0, 0))
    assert await store.reset(0, claim.token, after, wipe=True) == CommitOutcome.OK

    again = await store.claim(0)
    assert (again.watermark, again.outbox) == (after, ())
    users = ["user 1", "user 2", "user 3"]
    assert (await store.load(0, users)).states == [None] * 3
    assert await store.documents(0, users) == [None] * 3
    assert await store.top(0, 9) == []
    assert await store.due(0, 9, 9) == []
    assert await store.scan(0, "", 9) == ([], "")
    assert await store.active(0) == "main"
    assert (await other.load(0, ["ada"])).states == [b"state aside"]


async def test_seq_never_goes_back_by_a_reset(deployment: Deployment) -> None:
    store = deployment.open()
    await _three_commits(store)
    for wipe in (False, True):
        claim = await store.claim(0)
        low = mark(1, claim.token, (0, 0, 0))
        assert await store.reset(0, claim.token, low, wipe=wipe) == CommitOutcome.OK
        held = (await store.load(0, [])).watermark
        assert held is not None and held.identity == Identity(3, claim.token)
    again = await store.claim(0)
    await commit(store, again, again.watermark, write("ada"), after=mark(4, again.token))


async def test_a_reset_takes_the_last_claim_s_token_and_fences_the_writer(
    deployment: Deployment,
) -> None:
    store = deployment.open()
    held = await _three_commits(store)
    first, second = await store.claim(0), await store.claim(0)
    for wipe in (False, True):
        wanted = mark(4, first.token, (0, 0, 0))
        assert await store.reset(0, first.token, wanted, wipe=wipe) == CommitOutcome.FENCED
    assert (await store.load(0, ["user 1"])).states == [b"state 1"]
    assert await store.document(0, "user 1") == b"document 1"
    assert (await store.load(0, [])).watermark == held
    wanted = mark(4, second.token, (0, 0, 0))
    assert await store.reset(0, second.token, wanted, wipe=False) == CommitOutcome.OK
    late = Commit(first.token, held, mark(4, first.token), [write("ada")])
    assert await store.commit(0, late) == CommitOutcome.FENCED


async def test_a_reset_store_serves_whichever_served_before(deployment: Deployment) -> None:
    main, aside = deployment.open(), deployment.open("aside")
    await _three_commits(main)
    writer = await main.claim(0)
    build = await aside.claim(0)
    built = await commit(aside, build, None, write("ada", "aside"), publishes=False)
    assert await aside.reset(0, build.token, built, wipe=False) == CommitOutcome.OK
    assert await main.active(0) == "aside"
    late = Commit(writer.token, writer.watermark, mark(4, writer.token), [write("ada")])
    assert await main.commit(0, late) == CommitOutcome.FENCED
    # seq is the partition's, not the store's.
    held = (await aside.load(0, [])).watermark
    assert held is not None and held.identity.seq == 3


async def test_an_empty_store_can_be_begun_by_a_reset(deployment: Deployment) -> None:
    store = deployment.open()
    claim = await store.claim(0)
    begun = mark(7, claim.token, (4, 0, 0))
    assert await store.reset(0, claim.token, begun, wipe=True) == CommitOutcome.OK
    again = await store.claim(0)
    assert again.watermark == begun
    assert [info.name for info in await store.stores()] == ["main"]
