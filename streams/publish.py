"""Publishing one partition: committed documents to Kafka, in commit order, in transactions.

Per claim one Publisher with one transactional producer (`<app>-<partition>`). Starting it fences
a zombie and waits until the zombie's open transaction has ended; only then is the last published
record read. The commits that wait go into one transaction, up to so many users: each user's last
document, the dead letters with their raw bytes, and one record on `<scores>.published` that names
the last commit and its positions, and where that has brought `scores`: one that was made again,
cut or deleted from since says so to the next claim. After that the outbox is trimmed up to the
published entry.
A roll-back made good (streams/held.py) may take several, of which the last alone does so.

There is one way back from every error: this publisher is thrown away and the partition claimed
again (a fenced aiokafka producer answers with bare AssertionErrors afterwards; `stop()` works).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError, ProducerFenced  # type: ignore[import-untyped]

from featurestore.errors import FeatureStoreError
from featurestore.store import FeatureStore, Identity, Watermark
from streams import crashpoints
from streams.connection import aiokafka_options, stop
from streams.emit import JSON_HEADERS, Headers, Parked, Published, latest, seal
from streams.ending import end
from streams.errors import Fenced, LogUnavailable, PublishError, StreamsError
from streams.gap import LogReader
from streams.metrics import Metrics
from streams.settings import Settings
from streams.sweep import pending

# Below the broker's default limit of a batch (1 MiB) by a wide margin for record overhead.
_BATCH_BYTES = 900_000
_LETTER_RECORDS = 4  # topics.py lets the DLQ hold this many times the largest record, and headers
_DLQ_PARTITION = 0  # streams.topics makes it with one: letters are few, and read in one place
# Users of one transaction: an hour that Redis lost may name all of a partition's, and in one
# transaction they would outlast the broker's patience, over and over. 30,000 took 0.7 s (two cores,
# loopback, one partition); a worker with many makes them side by side.
_USERS = 5000
_DOCUMENT_BYTES = 2048  # of one user, about
_COSTLY_S = 0.02
_START_S = 20.0
_TRANSACTION_S = 20.0
_TRANSACTION_TIMEOUT_MS = 15_000


@dataclass(slots=True)
class Waiting:
    """One commit, or what a claim found in the outbox, waiting to be published."""

    identity: Identity
    positions: tuple[int, ...]
    updates: dict[str, bytes]  # user -> document, b"" = tombstone
    parked: list[Parked] = field(default_factory=list)
    sweeps: bool = False  # while a sweep was pending, or the end of a roll-back made good
    more: bool = False  # of a roll-back made good: what comes next says how far it is published
    committed_s: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls, mark: Watermark, updates: dict[str, bytes], parked: Sequence[Parked] = ()
    ) -> Waiting:
        """What was committed by `mark`."""
        return cls(mark.identity, mark.positions, updates, list(parked), pending(mark))


class Pacer:
    """At most `rate` turns a second, over all partitions of a worker."""

    def __init__(self, rate: float) -> None:
        self._gap_s = 1.0 / rate
        self._next_s = 0.0

    async def turn(self) -> None:
        """Wait for the next turn."""
        now = time.monotonic()
        at = self._next_s = max(self._next_s + self._gap_s, now)
        if at > now:
            await asyncio.sleep(at - now)


class Breath:
    """Lets small steps take at most a share of the event loop, over all partitions of a worker.

    A step costs some milliseconds however few records it holds, and a transaction needs some
    twenty turns of the loop. Measured at 1,000 events/s over 4 partitions, send to `scores`:
    without a breath p50 201 ms and p99 399 (steps of five records filled the loop, a transaction
    took 100 ms); with a share of 0.4 p50 47 and p99 81; with 0.25 p50 66, with 0.6 p50 75.
    """

    def __init__(self, share: float = 0.4) -> None:
        self._share = share
        self._cost_s = 0.002  # of one small step, smoothed
        self._next_s = 0.0

    async def turn(self) -> None:
        """Wait for the next turn; each turn is given to one step."""
        now = time.monotonic()
        at = max(self._next_s, now)
        self._next_s = at + self._cost_s / self._share
        if at > now:
            await asyncio.sleep(at - now)

    def took(self, cpu_s: float) -> None:
        """A small step took that much of the loop (others' work while it waited included)."""
        self._cost_s += 0.1 * (min(cpu_s, _COSTLY_S) - self._cost_s)


class Publisher:
    """Publishes what one claim of one partition commits.

    outputs: UUIDs of the topics `scores` and `<scores>.published`.
    """

    def __init__(
        self,
        partition: int,
        settings: Settings,
        store: FeatureStore,
        token: str,
        log_id: str,
        outputs: tuple[str, str],
        reader: LogReader,
        pacer: Pacer,
        metrics: Metrics,
        progressed: Callable[[], None],
    ) -> None:
        self.partition = partition
        self.error: Exception | None = None  # once set, this publisher is done for
        self.users = 0  # documents and dead letters waiting
        self.published: Identity | None = None
        self.moved_s = 0.0  # when a transaction last ended, by the monotonic clock
        self.scores_end = 0  # of our partition of `scores`, as far as we know; a claim says
        self.scores_start = 0  # where it begins; a claim says
        self.scores_last = ""  # seal of the last record on it; a claim says
        self.scores_cut = False  # a transaction of ours began before that
        self._said: Published | None = None  # the last record of how far
        self._kafka = settings.kafka
        self._store = store
        self._token = token
        self._log_id = log_id
        self.outputs = outputs
        self._reader = reader
        self._pacer = pacer
        self._metrics = metrics
        self._progressed = progressed
        self._queue: deque[Waiting] = deque()
        self._wake = asyncio.Event()
        self._producer: AIOKafkaProducer | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether everything that was put is published."""
        return not self._queue

    async def start(self) -> None:
        """Start the producer: fences whoever published this partition before."""
        producer = AIOKafkaProducer(
            **aiokafka_options(self._kafka),
            transactional_id=f"{self._kafka.app}-{self.partition}",
            linger_ms=0,
            # aiokafka asks again this long after CONCURRENT_TRANSACTIONS; its 100 would be most
            # of a transaction's time.
            retry_backoff_ms=20,
            request_timeout_ms=int(_TRANSACTION_S * 1000),
            transaction_timeout_ms=_TRANSACTION_TIMEOUT_MS,
            max_batch_size=_BATCH_BYTES,
            max_request_size=16 << 20,
        )
        try:
            await asyncio.wait_for(producer.start(), _START_S)
        except (KafkaError, OSError, TimeoutError, AssertionError) as error:
            await stop(producer)
            raise LogUnavailable(
                f"no transactional producer for partition {self.partition} "
                f"({type(error).__name__}: {error}); is the broker up?"
            ) from error
        except BaseException:
            await stop(producer)
            raise
        self._producer = producer

    async def last_published(self) -> Published | None:
        """The last record of this partition on `<scores>.published`; None where there is none."""
        record = await self._reader.last(TopicPartition(self._kafka.published, self.partition))
        if record is None or record.value is None:
            return None
        self._said = Published.decode(record.value)
        return self._said

    def begin(self) -> None:
        """From now on publish what is put."""
        self._task = asyncio.create_task(self._run(), name=f"publish-{self.partition}")

    def put(self, waiting: Waiting) -> None:
        """Queue one commit; must be called in commit order."""
        self._queue.append(waiting)
        self.users += _weight(waiting)
        self._wake.set()

    async def stop(self) -> None:
        """Stop without publishing what waits; the next claim finds it in the outbox."""
        task, self._task = self._task, None
        if task is not None:
            await end(task)
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop(producer)

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    await self._pacer.turn()
                    await self._publish()
        except (StreamsError, FeatureStoreError) as error:
            self.error = error
        except (KafkaError, OSError, TimeoutError, AssertionError) as error:
            fenced = isinstance(error, ProducerFenced)
            said = f"transaction of partition {self.partition}: {type(error).__name__} {error}"
            self.error = Fenced(said) if fenced else PublishError(said)
        except Exception as error:  # noqa: BLE001  the owner logs it and claims again
            self.error = error
        finally:
            self._progressed()

    async def _publish(self) -> None:
        """One transaction with what waits, up to so many users, then trim the outbox."""
        commits, users = list[Waiting](), 0
        for commit in self._queue:
            commits.append(commit)
            users += _weight(commit)
            if users >= _USERS:
                break
        last = commits[-1]
        documents = latest([c.updates for c in commits])
        letters = await self._raw([p for c in commits for p in c.parked])
        crashpoints.passing("before_publish")
        began = time.monotonic()
        await asyncio.wait_for(self._transact(documents, letters, commits), _TRANSACTION_S)
        done = self.moved_s = time.monotonic()
        self._metrics.publish_s.observe(done - began)
        self._metrics.transactions.inc()
        self._metrics.published.inc(len(documents))
        self._metrics.letters.inc(len(letters))
        for commit in commits:
            self._metrics.lag_s.observe(done - commit.committed_s)
            self._queue.popleft()
            self.users -= _weight(commit)
        self._progressed()
        if last.more:
            return
        self.published = last.identity
        crashpoints.passing("before_trim")
        if not await self._store.trim(self.partition, self._token, last.identity):
            raise Fenced(f"partition {self.partition} was claimed by another worker")
        crashpoints.passing("after_trim")

    async def _transact(
        self, documents: dict[str, bytes], letters: list[Parked], commits: Sequence[Waiting]
    ) -> None:
        producer = self._producer
        assert producer is not None, "start() comes before begin()"
        kafka, p = self._kafka, self.partition
        await producer.begin_transaction()

        async def send(
            topic: str,
            partition: int,
            rows: list[tuple[bytes | None, bytes | None, Headers]],
            most: int = _BATCH_BYTES,
        ) -> list[Any]:
            # Whole batches: a future for each record would cost ten times the append.
            sent, builder = list[Any](), producer.create_batch()
            for key, value, headers in rows:
                full = builder.size() + len(key or b"") + len(value or b"") > most
                if (full and builder.record_count()) or builder.append(
                    timestamp=None, key=key, value=value, headers=headers
                ) is None:
                    sent.append(await producer.send_batch(builder, topic, partition=partition))
                    builder = producer.create_batch()
                    builder.append(timestamp=None, key=key, value=value, headers=headers)
            if builder.record_count():
                sent.append(await producer.send_batch(builder, topic, partition=partition))
            return sent

        values = await send(
            kafka.scores,
            p,
            [(user.encode(), doc or None, JSON_HEADERS) for user, doc in documents.items()],
        )
        room = _LETTER_RECORDS * kafka.max_record_bytes
        sent = await send(
            kafka.dlq,
            _DLQ_PARTITION,
            [x.render(kafka.sources[x.letter.source], p, room) for x in letters],
            # The topic's limit is one of batches, not of records: where the largest record is
            # small, letters that waited for the broker would be refused together, for ever.
            min(room, _BATCH_BYTES),
        )
        grows = len(documents) + 1 if documents else 0  # by the transaction's marker, too
        user = next(reversed(documents), None)
        sealed = self.scores_last if user is None else seal(user.encode(), documents[user] or None)
        mark = self._mark(commits, self.scores_end + grows, sealed)
        sent += await send(kafka.published, p, [(str(p).encode(), mark.encode(), JSON_HEADERS)])
        await asyncio.gather(*values, *sent)
        # A batch that had to be sent twice may come back without its offset, as -1.
        began = (await values[0]).offset if values else -1
        first = began if began >= 0 else self.scores_end
        if first < self.scores_end:
            self.scores_cut = True
            raise PublishError(
                f"{kafka.scores}/{p} ends at offset {first}, yet it had reached {self.scores_end}"
            )
        crashpoints.passing("in_transaction")
        await producer.commit_transaction()
        self.scores_end, self.scores_last = first + grows, sealed
        self._said = mark

    def _mark(self, commits: Sequence[Waiting], end: int, sealed: str) -> Published:
        """What to say of how far `commits` bring us, and `scores`: to `end`, with a last record."""
        last, said = commits[-1], self._said
        swept = max([said.swept if said else 0, *(c.identity.seq for c in commits if c.sweeps)])
        if last.more:
            assert said is not None, "a roll-back is behind something that was published"
            # As far as before, so that whoever comes next does all of it again; yet what is said
            # now has revisions of its own, and they must not come again.
            begun = last.identity.seq
            return replace(said, scores_end=end, swept=swept, scores_last=sealed, begun=begun)
        return Published(
            last.identity,
            last.positions,
            self._log_id,
            self._store.name,
            self.outputs[0],
            end,
            swept,
            sealed,
            self.scores_start,
        )

    async def _raw(self, parked: Sequence[Parked]) -> list[Parked]:
        """With their records, from memory or read again from the log."""
        missing: dict[int, list[int]] = {}
        for one in parked:
            if one.record is None and not one.sought:
                missing.setdefault(one.letter.source, []).append(one.letter.offset)
        found = {
            source: await self._reader.these(
                TopicPartition(self._kafka.sources[source], self.partition), offsets
            )
            for source, offsets in missing.items()
        }
        return [
            one
            if one.record is not None or one.sought
            else replace(one, record=found[one.letter.source].get(one.letter.offset), sought=True)
            for one in parked
        ]


def _weight(commit: Waiting) -> int:
    """What a commit adds to the outbox: dead letters count, since each is read and sent, too.

    By their size, since one may be as large as some hundred documents.
    """
    records = (x.record for x in commit.parked)
    sizes = (len(r.value or b"") if r is not None else 0 for r in records)
    return len(commit.updates) + sum(1 + size // _DOCUMENT_BYTES for size in sizes)
