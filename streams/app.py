"""The Faust app of a worker: `faust -A streams.app worker`, or `run(settings)`.

Faust starts, stops and rebalances; the transport hands over whole fetches, one agent passes them
to the owners of partitions, and Faust's own tables, web server, producer topics and exactly-once
stay off: state, outputs and positions are committed by us (streams.partition).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import logging.config
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import faust
from pydantic import ValidationError

from featurestore.errors import FeatureStoreError
from scoring.errors import ScoringError
from streams import compaction, crashpoints, threads, topics, transport  # threads: before numpy
from streams.agents import Ingest
from streams.codec import Codec
from streams.ending import end
from streams.errors import StreamsError, WrongSetting
from streams.logs import configuration
from streams.metrics import Metrics
from streams.publish import Breath, Pacer
from streams.serve import Server
from streams.settings import Settings
from streams.settings_sources import wrong_setting
from streams.stores import Stores
from streams.succession import Succession
from streams.surroundings import Surroundings
from streams.watchdog import Watchdog

log = logging.getLogger("streams.app")  # also where this module is run as a script

_SAID = (StreamsError, FeatureStoreError, ScoringError, OSError)  # their message is one line
_CHANNEL = 8  # polls waiting for the agent; beyond, fetching waits
_LOGS_S = 1.0  # claims run in parallel: one question serves them all
_LIVE_S = 30.0
_LEAVE_S = 10.0
_STOP_S = 40.0  # of a graceful stop: the batch at hand, what is to be published, the group
_JOIN_S = 15.0  # patience with an assignment that is on its way
_UNBEGUN_S = 5.0  # the same where no partition was ever ours: a broker that went as we started
_GC_THRESHOLD = 50_000  # with gc.freeze: 25-30 % of CPU (measured)


@dataclass(slots=True)
class Worker:
    """What a worker consists of besides Faust's services."""

    settings: Settings
    stores: Stores
    metrics: Metrics
    ingest: Ingest
    watchdog: Watchdog
    server: Server
    tasks: list[asyncio.Task[None]]
    leaving: contextlib.ExitStack

    def ready(self) -> tuple[bool, str]:
        """For /readyz."""
        owners = self.ingest.owners
        if not self.ingest.assigned_once:
            return False, "not assigned yet"
        halted = sorted(p for p, o in owners.items() if o.halted)
        if halted:
            return False, f"halted: {halted}"
        if self.ingest.partly:
            return False, f"not held of every source: {self.ingest.partly}"
        behind = sorted(p for p, o in owners.items() if not o.ready)
        return not behind, f"catching up: {behind}" if behind else f"ready: {len(owners)}"

    def live(self) -> tuple[bool, str]:
        """For /livez."""
        ago = time.monotonic() - self.watchdog.looked_s
        return ago < _LIVE_S, f"event loop seen {ago:.1f} s ago"


class _Logs:
    """The sources' logs, asked of the broker at most every few seconds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._known: topics.Logs | None = None

    async def __call__(self) -> topics.Logs:
        async with self._lock:
            if self._known is None or time.monotonic() - self._known.asked_s > _LOGS_S:
                self._known = await asyncio.to_thread(topics.logs, self._settings)
            return self._known


def give_up(message: str) -> NoReturn:
    """End the process at once, non-zero. A commit is atomic, so this is as safe as kill -9."""
    log.critical("giving up", extra={"error": message})
    print(f"livevalue: {message}", file=sys.stderr, flush=True)
    os._exit(1)


class WorkerApp(faust.App):
    """A Faust app with the worker that it runs."""

    logger = logging.getLogger("faust.app")  # Faust's own news, at Faust's level
    livevalue: Worker
    sources: Any  # the iterated topics; Faust subscribes to them as long as this lives

    async def stop(self) -> None:
        """Stop in order, but not for ever: without a broker Faust's consumer never stops."""
        patience_s = _STOP_S if self.livevalue.tasks else _UNBEGUN_S
        with _deadline(patience_s, "not stopped"), self.livevalue.leaving:
            await super().stop()


class Process(faust.Worker):
    """Faust's process around an app, once all that a worker needs is found to be there."""

    def __init__(self, app: WorkerApp, *args: Any, **kwargs: Any) -> None:
        _check(app.livevalue.settings)
        super().__init__(app, *args, **kwargs)

    async def _stop_on_signal(self, number: signal.Signals) -> None:
        """Whoever is asked to stop while he joins the group leaves it once he is in.

        Before, Faust does not come to an end: the worker was ended with 1, and the group waited for
        a member that was gone until his session was over (partitions without service for 12 s).
        """
        until, start = time.monotonic() + _JOIN_S, self._starting_fut
        ingest = cast(WorkerApp, self.app).livevalue.ingest
        while not ingest.assigned_once and time.monotonic() < until:
            if start is None or start.done():
                break  # it did not come so far
            await asyncio.sleep(0.1)
        await super()._stop_on_signal(number)


@contextlib.contextmanager
def _deadline(seconds: float, what: str) -> Iterator[None]:
    """Give up, non-zero, where the block takes longer; from a thread, so whatever the loop does."""
    said = f"{what} within {seconds:g} s: is the broker up? Nothing is lost by this"
    timer = threading.Timer(seconds, give_up, [said])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def create_app(settings: Settings) -> WorkerApp:
    """A Faust app that runs a worker of these settings."""
    if told := crashpoints.arm():
        log.warning("armed to crash", extra={"point": told, "unset": crashpoints.VARIABLE})
    kafka = settings.kafka
    app = WorkerApp(
        kafka.app,
        broker=[f"{transport.SCHEME}://{at.strip()}" for at in kafka.bootstrap.split(",")],
        broker_credentials=transport.credentials(kafka),
        datadir=os.path.join(tempfile.gettempdir(), f"livevalue-{os.getuid()}-{kafka.app}"),
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=kafka.partitions,
        broker_commit_interval=1.0,
        broker_session_timeout=kafka.session_timeout_s,
        broker_heartbeat_interval=kafka.heartbeat_s,
        broker_request_timeout=max(30.0, kafka.session_timeout_s + 5),
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
        logging_config=configuration(settings.worker.log_level),
        worker_redirect_stdouts=False,
        Worker=Process,
    )
    channel = app.channel(maxsize=_CHANNEL)
    transport.bind(app, channel, kafka, settings.worker.batch)

    metrics = Metrics()
    stores = Stores(settings)
    codec = Codec(settings)
    ingest = Ingest(
        Surroundings(
            settings=settings,
            codec=codec,
            metrics=metrics,
            pacer=Pacer(settings.worker.transactions_per_s),
            breath=Breath(),
            pipeline_for=stores.pipeline_for,
            logs=_Logs(settings),
            now_ms=lambda: time.time_ns() // 1_000_000,
            succession_for=lambda partition: Succession(
                partition, settings, codec, stores.store, stores.generation
            ),
        )
    )
    worker = Worker(
        settings,
        stores,
        metrics,
        ingest,
        Watchdog(settings, lambda: ingest.owners, lambda: _coordinated(app), give_up),
        Server(
            settings.worker.metrics_host,
            settings.worker.metrics_port,
            metrics.registry,
            lambda: worker.live(),
            lambda: worker.ready(),
        ),
        [],
        contextlib.ExitStack(),
    )
    app.livevalue = worker
    _connect(app, channel, worker)
    return app


def _connect(app: WorkerApp, channel: Any, worker: Worker) -> None:
    """The agent, and what happens on assignment, revocation, start and stop."""
    ingest = worker.ingest
    # Iterating the topics is what makes Faust subscribe to them; their channel stays empty,
    # since fetches go to ours.
    app.sources = aiter(
        app.topic(*worker.settings.kafka.sources, value_serializer="raw", key_serializer="raw")
    )

    @app.agent(channel, name="ingest")
    async def ingest_agent(stream: Any) -> None:
        async for poll in stream:
            ingest.deliver(poll)

    @app.on_partitions_assigned.connect
    async def on_assigned(sender: Any, /, *args: Any, signal: Any, **_: Any) -> None:
        if not worker.tasks:
            await _begin(worker)
        ingest.assigned(app.consumer, args[0])

    @app.on_partitions_revoked.connect
    async def on_revoked(sender: Any, /, *args: Any, signal: Any, **_: Any) -> None:
        ingest.revoked()

    @app.on_before_shutdown.connect
    async def on_shutdown(sender: Any, /, *args: Any, signal: Any, **_: Any) -> None:
        # Faust has stopped fetching; it leaves the group after this.
        await end(*worker.tasks)
        await ingest.close()
        await worker.stores.close()
        worker.server.stop()
        log.info("stopped")
        # Everything is committed and published; what is left is to leave the group.
        worker.leaving.enter_context(_deadline(_LEAVE_S, "the group was not left"))


async def _begin(worker: Worker) -> None:
    """Before the first assignment is taken on: check, say where we listen, watch."""
    try:
        await preflight(worker.settings, worker.stores)
        compacted = await asyncio.to_thread(topics.compacted, worker.settings)
    except _SAID as error:
        give_up(str(error))
    if warning := compaction.warning(compacted):
        log.warning("compacted input", extra={"warning": warning})
    worker.server.start()
    worker.tasks.append(asyncio.create_task(worker.watchdog.run(), name="watchdog"))
    host = worker.settings.worker.metrics_host
    url = f"http://{host}:{worker.server.port}/metrics"
    log.info("serving metrics", extra={"url": url, "threads": threads.PINNED})
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 20, 20)


async def preflight(settings: Settings, stores: Stores) -> None:
    """Broker, topics, store and generation are there and fit; raises what an operator must do."""
    await asyncio.to_thread(topics.require, settings)
    await stores.introduce()
    await stores.permit()
    await stores.generation("")


def _check(settings: Settings) -> None:
    """`preflight` before there is a worker; what an operator must do ends the process."""
    stores = Stores(settings)

    async def check() -> None:
        try:
            await preflight(settings, stores)
        finally:
            await stores.close()

    loop = asyncio.new_event_loop()  # asyncio.run would leave the caller without his own
    try:
        loop.run_until_complete(check())
    except _SAID as error:
        _end(error)
    finally:
        loop.close()


def _coordinated(app: WorkerApp) -> bool:
    """Whether the group's coordinator is known."""
    if app._consumer is None:
        return False
    consumer = cast(transport.Consumer, app.consumer).aiokafka_consumer
    return consumer is not None and consumer._coordinator.coordinator_id is not None


def run(settings: Settings) -> NoReturn:
    """Run a worker until SIGTERM or SIGINT (exit 0) or until it gives up (exit 1)."""
    logging.config.dictConfig(configuration(settings.worker.log_level))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        app = create_app(settings)
    except _SAID as error:
        _end(error)
    app.finalize()
    app.worker_init()
    worker = app.Worker(loop=loop, loglevel=settings.worker.log_level, quiet=True)
    worker.execute_from_commandline()


def _end(error: Exception) -> NoReturn:
    """Before there is a worker: one line on standard error, exit code 1."""
    said = wrong_setting(error) if isinstance(error, ValidationError) else error
    print(f"livevalue: {said}", file=sys.stderr, flush=True)
    raise SystemExit(1) from None


def _settings() -> Settings:
    try:
        return Settings()
    except (WrongSetting, ValidationError) as error:
        _end(error)


def __getattr__(name: str) -> Any:
    """`app`, made on demand: importing this module reads no settings and connects nowhere.

    What keeps it from being made ends the process with one line: Faust would print a traceback.
    """
    if name == "app":
        try:
            app = create_app(_settings())
        except _SAID as error:
            _end(error)
        globals()["app"] = app
        return app
    raise AttributeError(name)


def main() -> NoReturn:
    """`python -m streams.app`."""
    run(_settings())


if __name__ == "__main__":
    main()
