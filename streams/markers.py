"""Markers of transactions that compaction has emptied: read over, not a poison pill.

A producer that died amid a transaction has it aborted by a marker of a new epoch. Where that is the
last that a partition knows of the producer, the cleaner takes the marker's record and leaves the
batch, since it holds the epoch (Kafka, LogCleaner: RETAIN_EMPTY). aiokafka 0.14.0 and kafka-python
3.0.12 ask such a batch for its record, and raise: whoever reads a compacted topic stands still
there for ever. `install` lets both take it for what it was. All that the marker aborted is gone by
then, and a producer's transactions follow each other, so none but an aborted one can end by it.
"""

from __future__ import annotations

from typing import Any

from aiokafka.consumer import fetcher  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from kafka.consumer.fetcher import Fetcher  # type: ignore[import-untyped]

_of_aiokafka = fetcher.PartitionRecords._contains_abort_marker
_of_kafka_python = Fetcher.PartitionRecords._contains_abort_marker


def _aiokafka(self: Any, batch: Any) -> bool:
    try:
        return bool(_of_aiokafka(self, batch))
    except KafkaError:  # it has no other reason: "Control batch did not contain any records"
        return True


def _kafka_python(self: Any, batch: Any) -> bool:
    try:
        return bool(_of_kafka_python(self, batch))
    except StopIteration:
        return True


def install() -> None:
    """Let every consumer of this process read so."""
    fetcher.PartitionRecords._contains_abort_marker = _aiokafka
    Fetcher.PartitionRecords._contains_abort_marker = _kafka_python
