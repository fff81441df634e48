"""A Faust transport that hands over whole fetches: one fetch is one `Poll` on a channel.

Stock Faust starts four asyncio tasks for each message (about 70 microseconds, against 1.4 for
the fetch). Here one fetch is one event on the agent's channel (2.6 microseconds an event), and
it says for each source partition from which position to which position it speaks, which a
list of records cannot: markers of transactions take offsets.

Underscore methods of faust-streaming 0.15.x and aiokafka 0.14 are overridden; both are pinned,
and tests/streams/test_transport.py holds them to it. What broken versions taught:
- a put on the channel is raced against `suspend_flow`, else a rebalance waits for a full channel;
- `FlowControlQueue.clear()` cancels blocked putters: that poll is dropped and comes again;
- an empty set of active partitions means "all" to aiokafka's fetcher, so it is never asked so;
- a poll is handed over when a position moved, even if it holds no record;
- the ledger of revoked partitions is dropped, else their acks are committed later;
- a position that the log no longer holds is set anew by aiokafka in the middle of a fetch, without
  a seek: what a fetch says then reaches from nowhere (without that a jump over what retention
  deleted passed for a log without records there).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import aiokafka  # type: ignore[import-untyped]
import faust
from aiokafka.coordinator.assignors.range import RangePartitionAssignor  # type: ignore[import-untyped]
from aiokafka.errors import ConsumerStoppedError  # type: ignore[import-untyped]
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.connection import aiokafka_options
from streams.delivery import Segment
from streams.settings import KafkaSettings

SCHEME = "livevalue"  # livevalue://host:port
TRANSPORTS.aliases[SCHEME] = "streams.transport:Transport"

_FETCH_WAIT_MS = 200  # a fetch returns as soon as one byte is there, so this costs no latency
_POLL_S = 0.5
_METADATA_MS = 5_000
_faust_log = logging.getLogger("faust.transport.livevalue")  # at Faust's level


@dataclass(slots=True, eq=False, weakref_slot=True)
class Poll:
    """One fetch: a segment for each source partition whose position moved."""

    segments: dict[TP, Segment]
    generation_id: int
    # Faust's streams ask these two of whatever passes through a channel.
    acked: bool = False
    refcount: int = 1


class PositionedConsumer(aiokafka.AIOKafkaConsumer):  # type: ignore[misc]
    """Counts seeks, so that a fetch can tell whether one came in between."""

    seeks = 0

    def seek(self, partition: Any, offset: int) -> None:
        self.seeks += 1
        super().seek(partition, offset)

    async def seek_to_beginning(self, *partitions: Any) -> bool:
        self.seeks += 1
        return cast(bool, await super().seek_to_beginning(*partitions))

    async def seek_to_committed(self, *partitions: Any) -> Any:
        self.seeks += 1
        return await super().seek_to_committed(*partitions)


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread over a read-committed, co-partitioned aiokafka consumer."""

    logger = _faust_log

    def _create_worker_consumer(self, transport: driver.Transport) -> PositionedConsumer:
        conf = self.app.conf
        kafka = cast(Consumer, self.consumer).kafka
        # Faust reads this one; range gives a worker the same partition numbers of every topic.
        self._assignor = RangePartitionAssignor
        return PositionedConsumer(
            **aiokafka_options(kafka),
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=kafka.instance_id or None,
            partition_assignment_strategy=[RangePartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 1000.0) * 1000),
            max_partition_fetch_bytes=4 << 20,
            fetch_max_wait_ms=_FETCH_WAIT_MS,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            session_timeout_ms=int(kafka.session_timeout_s * 1000),
            heartbeat_interval_ms=int(kafka.heartbeat_s * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            # A topic that was made again comes back to the assignment only with new metadata.
            metadata_max_age_ms=_METADATA_MS,
        )


class Consumer(driver.Consumer):
    """Delivers polls to `sink`; acknowledges by segment, in the order of the log."""

    logger = _faust_log

    # Set by `bind` on a subclass of each app's own.
    sink: ClassVar[Any]
    kafka: ClassVar[KafkaSettings]
    max_records: ClassVar[int] = 4096

    def __post_init__(self) -> None:
        self._ledger: defaultdict[TP, deque[Segment]] = defaultdict(deque)

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def aiokafka_consumer(self) -> PositionedConsumer | None:
        """The consumer underneath, None before it has started."""
        return cast(PositionedConsumer | None, self._thread._consumer)

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        thread = self._thread
        consumer = thread._ensure_consumer()
        # A copy: the set changes on this thread while the fetch runs on the other.
        return await thread.call_thread(
            self._fetch, consumer, frozenset(active_partitions or ()), timeout
        )

    async def _fetch(
        self, consumer: Any, active: frozenset[TP], timeout: float
    ) -> dict[TP, Segment]:
        """On the consumer's thread: one fetch, with positions before and after it."""
        if not self.flow_active or not active:
            return {}
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError
        subscription = consumer._subscription.subscription
        assignment = subscription.assignment if subscription else None
        seeks = consumer.seeks
        before = {tp: _position(assignment, tp) for tp in active}
        resets = {tp: _reset(assignment, tp) for tp in active}
        with fetcher._subscriptions.fetch_context():
            got = await fetcher.fetched_records(
                active, timeout=min(timeout, _POLL_S), max_records=self.max_records
            )
        same = (
            assignment is not None
            and consumer._subscription.subscription is subscription
            and subscription.assignment is assignment
            and consumer.seeks == seeks
        )
        polled: dict[TP, Segment] = {}
        for tp in active:
            records = got.get(tp) or []
            low = before[tp] if same else None
            after = _position(assignment, tp) if same else None
            if after is None or (records and after <= records[-1].offset):
                low, after = None, (records[-1].offset + 1 if records else None)
            if low is not None and records and low > records[0].offset:
                low = None
            if _reset(assignment, tp) is not resets[tp]:
                low = None
            if after is not None and (records or (low is not None and after > low)):
                end = _last_stable(assignment, tp) if same else -1
                polled[TP(tp.topic, tp.partition)] = Segment(low, after, records, end)
        return polled

    async def _drain_messages(self, fetcher: Any) -> None:
        """Faust's fetcher task: fetch, put on the channel, until one of us shall stop."""
        stopped, fetcher_stopped = self._stopped.is_set, fetcher._stopped.is_set
        try:
            while not (stopped() or fetcher_stopped()):
                polled = await self._next()
                if not polled or self.should_stop:
                    continue
                poll = Poll(polled, self.app.consumer_generation_id)
                for tp, segment in polled.items():
                    self._read_offset[tp] = segment.after
                    self._acked[tp]  # so that a commit looks at this partition at all
                    self._ledger[tp].append(segment)
                try:
                    await self.wait_first(self.sink.put(poll), self.suspend_flow.wait())
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if self.should_stop or (task is not None and task.cancelling()):
                        raise
        except ConsumerStoppedError:
            if not self.transport.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.transport.app.should_stop:
                raise

    async def _next(self) -> dict[TP, Segment]:
        """The next fetch; after a rebalance, first go back to the committed offsets."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)  # type: ignore[arg-type]
        active = self._get_active_partitions()
        if not active:
            # Everything is paused or nothing is assigned. Say that we live, or the group
            # throws us out after max_poll_interval.
            consumer = self.aiokafka_consumer
            if consumer is not None:
                await self._thread.call_thread(_show_life, consumer)
            await self.sleep(0.05)
            return {}
        polled = cast(dict[TP, Segment], await self._getmany(active, _POLL_S))
        if not self.flow_active:
            try:
                await self.perform_seek()
            except Exception as error:  # noqa: BLE001  as Faust does: the next round tries again
                self.log.warning("seek to the committed offsets failed: %r", error)
            return {}
        return polled

    def _new_offset(self, tp: TP) -> int | None:
        """Offset to commit: the end of the last segment before the first unacknowledged one."""
        ledger, offset = self._ledger[tp], None
        while ledger and ledger[0].acked:
            offset = ledger.popleft().after
        return offset

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self._ledger.pop(TP(tp.topic, tp.partition), None)

    def pause(self, tps: Iterable[TP]) -> None:
        """Stop fetching these for now; others go on."""
        self.pause_partitions(set(tps))

    def resume(self, tps: Iterable[TP]) -> None:
        """Fetch these again, if they are still ours and flow has not been stopped."""
        mine = self.assignment()
        if self.flow_active:
            self.resume_partitions({tp for tp in tps if tp in mine})

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust would complain for ever of streams that it does not see; streams.watchdog looks."""

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        # The watermark is the truth; Kafka's offsets are a metric for lag exporters. A commit
        # that fails must not take the worker down, as Faust's would.
        consumer = self.aiokafka_consumer
        if consumer is None:
            return False
        try:
            return cast(bool, await self._thread.call_thread(_commit, consumer, dict(offsets)))
        except Exception as error:  # noqa: BLE001  a lag metric only, as said above
            self.log.info("offsets not committed, next time: %r", error)
            return False


async def _show_life(consumer: PositionedConsumer) -> None:
    with consumer._subscription.fetch_context():
        pass


async def _commit(consumer: PositionedConsumer, offsets: dict[TP, int]) -> bool:
    mine = consumer.assignment()
    mapped = {
        aiokafka.TopicPartition(tp.topic, tp.partition): aiokafka.structs.OffsetAndMetadata(o, "")
        for tp, o in offsets.items()
        if aiokafka.TopicPartition(tp.topic, tp.partition) in mine
    }
    if mapped:
        await consumer.commit(mapped)
    return bool(mapped)


def _position(assignment: Any, tp: Any) -> int | None:
    state = _state(assignment, tp)
    return None if state is None else state._position


def _reset(assignment: Any, tp: Any) -> Any:
    """What aiokafka makes anew each time that it sets a position it was not told to seek."""
    state = _state(assignment, tp)
    return None if state is None else state._position_fut


def _last_stable(assignment: Any, tp: Any) -> int:
    state = _state(assignment, tp)
    lso = None if state is None else state.lso
    return -1 if lso is None else int(lso)


def _state(assignment: Any, tp: Any) -> Any:
    if assignment is None:
        return None
    return assignment._tp_state.get(tp)


def credentials(kafka: KafkaSettings) -> Any:
    """What Faust's own producer logs in with; the consumer takes `aiokafka_options`."""
    options = aiokafka_options(kafka)
    context = options.get("ssl_context")
    if kafka.security.startswith("SASL"):
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            ssl_context=context,
            mechanism=kafka.sasl_mechanism,
        )
    return faust.SSLCredentials(context=context) if context else None


class Transport(driver.Transport):
    """`livevalue://`; see `bind`."""

    Consumer: ClassVar[Any] = Consumer


def bind(app: faust.App, channel: Any, kafka: KafkaSettings, max_records: int) -> None:
    """Let this app's consumer deliver to `channel`; a process may hold several apps."""
    bound = type(
        "BoundConsumer",
        (Consumer,),
        {"sink": channel, "kafka": kafka, "max_records": max_records},
    )
    app.transport = type("BoundTransport", (Transport,), {"Consumer": bound})(
        app.conf.broker_consumer, app
    )
