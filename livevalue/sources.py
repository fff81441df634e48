"""SRC of the commands: `kafka`, an archive's folder, or event logs in files.

Whatever it is, it becomes the same steps (streams.replay.Step), so that replay, backfill, retrain
and evaluate do not care. Several may be given: they follow each other, as a warehouse's export
and then the log's last days do.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from featurestore.columns import NO_TIME, EventBatch
from livevalue.caveats import caveats
from livevalue.rejections import rejections
from streams.archive import archive_bounds, archive_steps, is_archive
from streams.codec import Codec
from streams.errors import LogFileError
from streams.kafkalog import KafkaLog
from streams.log import FileLog
from streams.replay import Step, file_steps, kafka_steps
from streams.settings import Settings

KAFKA = "kafka"
_STEP = 2000  # events a step
_AHEAD = 8  # steps read ahead of whoever trains
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How files are read; see interfaces of `--columns`, `--type`, `--order-lines`."""

    columns: Mapping[str, str] = field(default_factory=dict)
    type: str | None = None
    order_lines: bool = False
    anonymous: str = "skip"

    def open(self, paths: Sequence[Path], settings: Settings) -> FileLog:
        """The files as one log."""
        return FileLog(
            paths,
            settings,
            columns=dict(self.columns),
            type=self.type,
            order_lines=self.order_lines,
            anonymous=self.anonymous,
        )


def parse_columns(text: str) -> dict[str, str]:
    """`--columns user_id=CustomerID,amount=Total` as a mapping.

    >>> parse_columns("user_id=CustomerID,amount=Total")
    {'user_id': 'CustomerID', 'amount': 'Total'}
    """
    pairs = [part.partition("=") for part in text.split(",") if part]
    wrong = [name for name, equals, column in pairs if not (name and equals and column)]
    if wrong:
        raise LogFileError(
            f"--columns {text!r}: write NAME=COLUMN[,NAME=COLUMN], for example "
            "user_id=CustomerID,amount=Total"
        )
    return {name: column for name, _, column in pairs}


class Source:
    """One or several SRC of a command, opened for reading once."""

    def __init__(
        self, src: Sequence[str], settings: Settings, options: FileOptions | None = None
    ) -> None:
        self._settings = settings
        self._codec = Codec(settings)
        self.rejected: Counter[str] = Counter()  # by the last reading by `batches`
        self._warnings: list[str] | None = None
        self.kafka = KAFKA in src
        self.archives = [Path(s) for s in src if s != KAFKA and is_archive(Path(s))]
        self.files = [Path(s) for s in src if s != KAFKA and not is_archive(Path(s))]
        missing = [str(path) for path in self.files if not path.is_file()]
        if missing:
            raise LogFileError(
                f"{missing[0]} is neither a file, nor a folder that `livevalue archive` wrote, "
                "nor the word kafka: correct SRC"
            )
        options = options or FileOptions()
        self.file_log = options.open(self.files, settings) if self.files else None

    def rejections(self, counts: Mapping[str, int] | None = None) -> dict[str, Any]:
        """What was left out, and `warnings` of the topics, as every command's JSON holds it.

        counts: what a replay counted; without, what the last reading by `batches` did.
        """
        facts = rejections(self.rejected if counts is None else counts, self.file_log)
        if self.kafka and self._warnings is None:
            self._warnings = caveats(self._settings)
        return {**facts, "warnings": self._warnings or []}

    async def steps(self) -> AsyncGenerator[Step]:
        """All steps: files first, then archives, then the topics up to their ends."""
        kafka = self._settings.kafka
        if self.file_log is not None:
            async for step in file_steps(
                self.file_log, kafka.partitions, len(kafka.sources), _STEP
            ):
                yield step
        for folder in self.archives:
            async for step in archive_steps(self._settings, self._codec, folder):
                yield step
        if self.kafka:
            async with KafkaLog(kafka) as log:
                for partition in range(kafka.partitions):
                    ends = await log.ends(partition)
                    start = self._archived(partition)
                    async for step in kafka_steps(
                        log, self._codec, partition, None, ends, start=start
                    ):
                        yield step

    def _archived(self, partition: int) -> tuple[int, ...] | None:
        """Where the archive ends: its records are not read from the topics again."""
        if not self.archives:
            return None
        bounds = [
            archive_bounds(self.archives[-1], topic, partition)
            for topic in self._settings.kafka.sources
        ]
        return tuple(held[1] if held else 0 for held in bounds)

    def batches(self) -> Iterator[tuple[int, EventBatch]]:
        """The same as plain (partition, batch) pairs, for training.

        Read by a thread with an event loop of its own, so that it can be used from anywhere.
        Where the deployment's clock is `log`, an event's log time is its source's clock.
        """
        ready: queue.Queue[tuple[int, EventBatch] | Exception | None] = queue.Queue(_AHEAD)
        left = threading.Event()

        async def read() -> None:
            self.rejected.clear()
            async with aclosing(self.steps()) as steps:
                async for step in steps:
                    self.rejected.update(f"rejected_{one.reason}" for one in step.rejected)
                    _put(ready, (step.partition, step.batch), left)

        def run() -> None:
            end: Exception | None = None
            try:
                asyncio.run(read())
            except Exception as error:  # noqa: BLE001  raised again where it is read
                end = error
            _put(ready, end, left)

        thread = threading.Thread(target=run, name="source", daemon=True)
        thread.start()
        clocks: dict[tuple[int, int], int] = {}
        try:
            while (what := ready.get()) is not None:
                if isinstance(what, Exception):
                    raise what
                if self._settings.worker.clock == "log":
                    _log_clock(what[0], what[1], clocks)
                yield what
        finally:
            left.set()
            thread.join(10)


def _put(ready: queue.Queue[_T], what: _T, left: threading.Event) -> None:
    """Wait for room, but not for a reader who has left."""
    while not left.is_set():
        try:
            ready.put(what, timeout=0.2)
            return
        except queue.Full:
            continue


def _log_clock(partition: int, batch: EventBatch, clocks: dict[tuple[int, int], int]) -> None:
    """Set the log time of a played-in history to its source's clock after each event."""
    for source in np.unique(batch.events["source"]):
        rows = np.flatnonzero(batch.events["source"] == source)
        key = (partition, int(source))
        times = batch.events["time_ms"][rows]
        times[0] = max(int(times[0]), clocks.get(key, NO_TIME))
        batch.log_ms[rows] = np.maximum.accumulate(times)
        clocks[key] = int(batch.log_ms[rows[-1]])
