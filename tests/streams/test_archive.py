"""The archive: exact by positions, resumable, one folder a log, and back through the codec."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from livevalue.embedded import Stack
from streams import topics
from streams.archive import Archived, archive, archive_bounds, archive_steps
from streams.codec import Codec
from streams.errors import LogFileError, LogReset
from streams.replay import Step
from streams.settings import KafkaSettings, Settings


@pytest.fixture
def settings(stack: Stack, topic_prefix: str) -> Settings:
    kafka = KafkaSettings(
        bootstrap=stack.bootstrap,
        partitions=1,
        mixed=f"{topic_prefix}events",
        scores=f"{topic_prefix}scores",
        dlq=f"{topic_prefix}dlq",
    )
    made = Settings(kafka=kafka)
    topics.apply(made)
    return made


async def produce(settings: Settings, *transactions: tuple[int, bool]) -> None:
    """Transactions of so many orders, committed or aborted; each takes one offset more."""
    kafka = settings.kafka
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap, transactional_id=f"{kafka.mixed}-up"
    )
    await producer.start()
    for number, (count, commit) in enumerate(transactions):
        await producer.begin_transaction()
        for n in range(count):
            order = {
                "type": "purchase",
                "event_id": f"{number}-{n}",
                "user_id": "ada",
                "event_time": 1_700_000_000_000 + n,
                "amount": "1.50",
            }
            await producer.send(kafka.mixed, json.dumps(order).encode(), b"ada", partition=0)
        await (producer.commit_transaction() if commit else producer.abort_transaction())
    await producer.stop()


async def steps_of(settings: Settings, folder: Path) -> list[Step]:
    return [step async for step in archive_steps(settings, Codec(settings), folder)]


async def test_an_archive_ends_where_the_log_ends_markers_included(
    settings: Settings, tmp_path: Path
) -> None:
    await produce(settings, (3, True), (4, False), (2, True))
    ids = topics.topic_ids(settings)
    assert await archive(settings, tmp_path, ids) == Archived(1, 5)
    assert archive_bounds(tmp_path, settings.kafka.mixed, 0) == (0, 12)
    steps = await steps_of(settings, tmp_path)
    assert sum(step.batch.size for step in steps) == 5
    assert steps[-1].after.positions == (12,), "a marker stands behind the last record"


async def test_an_archive_goes_on_where_it_stopped_and_a_hole_is_refused(
    settings: Settings, tmp_path: Path
) -> None:
    ids = topics.topic_ids(settings)
    for expected in (Archived(1, 3), Archived(1, 3), Archived(1, 3)):
        await produce(settings, (3, True))
        assert await archive(settings, tmp_path, ids) == expected
    assert await archive(settings, tmp_path, ids) == Archived(0, 0)
    files = sorted((tmp_path / settings.kafka.mixed / "0").iterdir())
    assert [f.stem.split("-")[0].lstrip("0") for f in files] == ["", "4", "8"]
    files[1].unlink()
    with pytest.raises(LogFileError, match="offsets 4 to 8 are missing"):
        await steps_of(settings, tmp_path)


async def test_a_folder_of_another_log_is_refused(settings: Settings, tmp_path: Path) -> None:
    await produce(settings, (1, True))
    await archive(settings, tmp_path, topics.topic_ids(settings))
    with pytest.raises(LogReset, match="another log"):
        await archive(settings, tmp_path, {settings.kafka.mixed: "made-again"})


async def test_log_time_never_goes_back_over_files(settings: Settings, tmp_path: Path) -> None:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    ids = topics.topic_ids(settings)
    for _ in range(2):
        await produce(settings, (20, True))
        await archive(settings, tmp_path, ids)
    files = sorted((tmp_path / settings.kafka.mixed / "0").iterdir())
    times = [t for f in files for t in pq.read_table(f)["log_time"].to_pylist()]
    assert len(times) == 40 and times == sorted(times)
