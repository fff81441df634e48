"""What an owner does beside committing: silence, idle sources, markers, refusals to begin."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from featurestore.errors import StoreUnavailable
from featurestore.settings import FeatureSettings
from featurestore.store import Claim
from livevalue.embedded import Stack
from scoring.errors import RegistryUnavailable
from streams import claim, topics
from streams.errors import Fenced, TopicError
from streams.logs import JsonFormatter
from streams.publish import Publisher
from streams.settings import KafkaSettings, Settings, WorkerSettings
from streams.stores import Stores
from tests.streams.owning import CLEAN, START_MS, Owning, one_partition

DAY_MS = 86_400_000


@pytest.fixture
async def owning(stack: Stack, topic_prefix: str) -> AsyncIterator[Owning]:
    async with Owning(one_partition(stack.bootstrap, topic_prefix)) as made:
        yield made


def three_sources(stack: Stack, prefix: str, **worker: object) -> Settings:
    return Settings(
        kafka=KafkaSettings(
            bootstrap=stack.bootstrap,
            app=f"{prefix}app",
            browse=f"{prefix}browse",
            purchase=f"{prefix}purchase",
            interaction=f"{prefix}interaction",
            scores=f"{prefix}scores",
            dlq=f"{prefix}dlq",
            partitions=1,
        ),
        worker=WorkerSettings(**{"clock": "log", **worker}),
    )


async def test_silent_users_are_published_when_their_value_has_moved_and_not_before(
    stack: Stack, topic_prefix: str
) -> None:
    async with Owning(one_partition(stack.bootstrap, topic_prefix, clock="wall")) as owning:
        owning.own()
        await owning.send(80)
        await owning.settle()
        await asyncio.sleep(0.8)  # several looks for silent users
        published = len(await owning.scores())
        assert published == 40
        owning.now_ms = START_MS + 90 * DAY_MS
        await owning.until_swept(published + 40)
        said = [json.loads(r.value or b"") for r in (await owning.scores())[published:]]
        assert {d["cause"]["type"] for d in said} == {"silence"}
        assert {d["as_of"][:10] for d in said} == {"2024-02-12"}
        assert await owning.audit() == CLEAN
        assert owning.owner is not None and owning.owner.watermark is not None
        assert owning.owner.watermark.positions == (80,)


async def test_silence_is_told_by_the_logs_clock_where_history_is_played_in(
    owning: Owning,
) -> None:
    owning.own()
    await owning.send(80)
    await owning.settle()
    owning.now_ms = START_MS + 90 * DAY_MS  # the wall's clock means nothing here
    await asyncio.sleep(0.8)  # several looks for silent users
    assert len(await owning.scores()) == 40


async def test_a_source_at_its_end_for_long_and_far_behind_is_left_out_of_the_frontier(
    stack: Stack, topic_prefix: str
) -> None:
    settings = three_sources(stack, topic_prefix, idle_after_s=0.5)
    async with Owning(settings) as owning:
        owner = owning.own()

        async def browse(n: int, time_ms: int, source: int = 0) -> None:
            event = {"event_id": f"b{source}.{n}", "user_id": "ada", "event_time": time_ms}
            if source == 1:
                event["amount"] = "1"
            topic = settings.kafka.sources[source]
            await owning.producer.send_and_wait(
                topic, json.dumps(event).encode(), key=b"ada", partition=0
            )
            await owning.show_end()

        await browse(0, START_MS)
        await browse(0, START_MS + 1000, source=1)
        await owning.settle()
        assert owner.watermark is not None
        assert owner.watermark.idle[:2] == (False, False)
        await asyncio.sleep(0.8)
        await browse(1, START_MS + 3 * DAY_MS)
        await owning.settle()
        await asyncio.sleep(0.8)
        await browse(2, START_MS + 3 * DAY_MS + 1)
        await owning.settle()
        # The purchases stand three days behind, interactions never had a record.
        assert owner.watermark.idle == (False, True, True)
        await browse(1, START_MS + 3 * DAY_MS, source=1)
        await owning.settle()
        assert owner.watermark.idle == (False, False, True)


async def test_positions_over_aborted_records_alone_are_committed_too(owning: Owning) -> None:
    owner = owning.own()
    await owning.send(10)
    await owning.settle()
    producer = AIOKafkaProducer(
        bootstrap_servers=owning.settings.kafka.bootstrap,
        transactional_id=f"{owning.settings.kafka.app}-up",
    )
    await producer.start()
    await producer.begin_transaction()
    await producer.send(owning.settings.kafka.sources[0], b"never", partition=0)
    await producer.abort_transaction()
    await producer.stop()
    # The broker writes the marker after it has answered.
    for _ in range(400):
        if await owning.end() == 12:
            break
        await asyncio.sleep(0.02)
    await owning.show_end()
    await owning.settle()
    assert owner.watermark is not None and owner.watermark.positions == (12,)
    assert owner.lag == 0


async def test_settings_that_change_the_fold_halt_before_anything_is_written(
    owning: Owning,
) -> None:
    owning.own()
    await owning.send(10)
    await owning.settle()
    assert owning.owner is not None
    await owning.owner.close(drain=True)
    before = owning.owner
    features = FeatureSettings(half_lives_days=(1.0, 2.0, 3.0))
    owning.settings = owning.settings.model_copy(update={"features": features})
    owning.pipelines.clear()
    owner = owning.own()
    assert owner is not before
    await owning.until(lambda: bool(owner.halted))
    name = "LIVEVALUE_FEATURES__HALF_LIVES_DAYS"
    assert f"{name} ([14.0, 45.0, 120.0] in the store, [1.0, 2.0, 3.0] in the se" in owner.halted
    assert owner.halted.count("LIVEVALUE_") == 1
    held = (await owning.store.load(0, [])).watermark
    assert held is not None and held.positions == (10,)


async def test_keys_of_another_partitioner_halt_with_the_name_of_the_setting(
    stack: Stack, topic_prefix: str
) -> None:
    kafka = KafkaSettings(
        bootstrap=stack.bootstrap,
        app=f"{topic_prefix}app",
        mixed=f"{topic_prefix}events",
        scores=f"{topic_prefix}scores",
        dlq=f"{topic_prefix}dlq",
        partitions=4,
    )
    settings = Settings(kafka=kafka, worker=WorkerSettings(clock="log"))
    async with Owning(settings) as owning:
        # All users into partition 0, as only another partitioner would send them.
        await owning.send(1200, users=400)
        owner = owning.own()
        await owning.until(lambda: bool(owner.halted))
        assert "LIVEVALUE_KAFKA__PARTITIONER" in owner.halted
        assert (await owning.store.load(0, [])).watermark is None


async def test_a_generation_that_does_not_fit_halts_with_its_message(owning: Owning) -> None:
    model = owning.settings.model.model_copy(update={"headline": "d8"})
    owning.settings = owning.settings.model_copy(update={"model": model})
    owner = owning.own()
    await owning.until(lambda: bool(owner.halted))
    assert "d7, d30, d90" in owner.halted


async def test_a_registry_that_does_not_answer_is_asked_again(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    active = owning.store.active

    async def away_at_first(partition: int) -> str | None:
        asked.append(partition)
        if len(asked) == 1:
            raise RegistryUnavailable("cannot read the registry")
        return await active(partition)

    monkeypatch.setattr(owning.store, "active", away_at_first)
    owner = owning.own()
    await owning.until(lambda: owner.ready)
    assert not owner.halted
    assert len(asked) >= 2


async def test_what_an_outbox_names_is_read_in_pages_and_not_of_a_redis_that_went_back_meanwhile(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "_PAGE", 15)
    owner = owning.own()
    await owning.send(40)
    await owning.settle()
    before, real = owning.backing.snapshot(), owning.store.documents
    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "_publish", lambda self: asyncio.Event().wait())
        await owning.send(80)
        await owning.until(lambda: owner.lag == 0 and owner.outbox_users >= 40)
        await owner.close(drain=False)
    pages = list[int]()

    async def documents(partition: int, users: Sequence[str]) -> list[bytes | None]:
        pages.append(len(users))
        if len(pages) == 2:
            owning.backing.restore(before)
        return await real(partition, users)

    monkeypatch.setattr(owning.store, "documents", documents)
    owning.own()
    await owning.settle()
    assert pages[:3] == [15, 15, 10]
    assert owning.metrics.irregular.labels(Fenced.__name__)._value.get() == 1
    assert await owning.audit() == CLEAN


async def test_a_topic_that_a_broker_does_not_know_of_for_a_moment_halts_nothing(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, name, asked = topics.all_found, owning.settings.kafka.scores, list[int]()

    def not_at_once(settings: Settings) -> dict[str, topics.TopicFound]:
        asked.append(1)
        return {t: x for t, x in found(settings).items() if t != name or len(asked) > 2}

    monkeypatch.setattr(topics, "all_found", not_at_once)
    owner = owning.own()
    await owning.until(lambda: owner.ready)
    assert not owner.halted
    assert owning.metrics.irregular.labels(TopicError.__name__)._value.get() == 2


@pytest.mark.parametrize("scheme", ["http", "ftp"])
async def test_what_a_worker_logs_of_a_registry_that_is_away_names_the_setting_and_no_secret(
    owning: Owning,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    url = f"{scheme}://key:hunter2@127.0.0.1:1/x"  # nothing listens there
    model = owning.settings.model.model_copy(update={"registry": url})
    stores = Stores(owning.settings.model_copy(update={"model": model}))

    async def of_a_first_start(partition: int) -> str | None:
        await stores.generation("")
        return None

    monkeypatch.setattr(owning.store, "active", of_a_first_start)
    formatter, forgotten = JsonFormatter(), "partition forgotten"
    owner = owning.own()
    await owning.until(lambda: forgotten in caplog.messages)
    assert not owner.halted
    lines = [formatter.format(record) for record in caplog.records]
    assert "hunter2" not in "\n".join(lines)
    (said,) = {json.loads(line)["error"] for line in lines if forgotten in line}
    assert "LIVEVALUE_MODEL__REGISTRY" in said and f"{scheme}://***@127.0.0.1:1/x" in said


async def test_many_dead_letters_that_waited_are_more_than_one_batch_of_their_topic_holds(
    stack: Stack, topic_prefix: str
) -> None:
    settings = one_partition(stack.bootstrap, topic_prefix)
    kafka = settings.kafka.model_copy(update={"max_record_bytes": 2048})
    async with Owning(settings.model_copy(update={"kafka": kafka})) as owning:
        await owning.send(40)
        for n in range(150):
            await owning.producer.send_and_wait(
                kafka.sources[0], b"%d" % n + b"x" * 2000, key=b"u0", partition=0
            )
        # All in one step, hence in one transaction.
        owning.own()
        await owning.settle()
        letters = await owning.read(kafka.dlq)
        assert len(letters) == 150 and await owning.audit() == CLEAN


async def test_a_store_that_is_away_is_no_stall_and_work_goes_on_soon_after_its_return(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = owning.own()
    await owning.send(40)
    await owning.settle()

    async def away(*_: object) -> Claim:
        raise StoreUnavailable("does not answer")

    with monkeypatch.context() as gone:
        for name in ("claim", "load", "commit"):
            gone.setattr(owning.store, name, away)
        await owning.send(40)
        # Longer than the back-off takes to reach what it is at most.
        for _ in range(80):
            await asyncio.sleep(0.1)
            assert time.monotonic() - owner.moved_s < 5, "the watchdog would end this worker"
        assert owner.lag > 0
    began = time.monotonic()
    await owning.settle()
    assert time.monotonic() - began < 4
    assert await owning.audit() == CLEAN
