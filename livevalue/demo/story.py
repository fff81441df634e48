"""The demo from start to end: a stack, a year of orders, values that move, a retrain, hindsight.

What is shown is the product at work: the worker is `livevalue run`, the retrain is
`livevalue retrain`, values are read from the `scores` topic. The bundled generation was trained
on the orders before `trained_until`; these are folded first, as a base of files, and what is
played begins there, so no value that moves has seen the order that moves it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from featurestore.wording import counted
from livevalue.client import ValueClient
from livevalue.demo.bundled import bundled
from livevalue.demo.hindsight import TOP, Hindsight, Lists, look_back, past_spenders
from livevalue.demo.listener import Listener
from livevalue.demo.orders import DAY_MS, Orders, load_orders, write_history
from livevalue.demo.player import Player
from livevalue.demo.screen import Screen, move_of
from livevalue.demo.worker import Command
from livevalue.embedded import Stack
from livevalue.jobs.storing import backfill
from livevalue.output import Refused
from livevalue.running import announce, prefix, withdraw
from livevalue.sources import FileOptions
from scoring.generation import Generation
from streams import topics
from streams.settings import Settings
from streams.stores import Stores

PARTITIONS = 4
_PLAY_S = 100.0  # of the whole log without --seconds
_SETTLE_S = 4.0  # after the last event, for the last values to arrive
_RETRAIN_AT = 0.35  # of what is played, so that the swap is seen too
_LOOK_S = 0.25
_FIRST_VALUE_S = 60.0
_RETRAIN_PATIENCE_S = 90.0


@dataclass(slots=True)
class Report:
    """What `livevalue demo --json` holds."""

    events: int = 0
    updates: int = 0
    users: int = 0
    first_value_s: float | None = None
    anonymous: int = 0
    simulated: int = 0
    generation_before: str = ""
    generation_after: str = ""
    promoted: bool = False
    reason: str = "no retrain was run"
    hindsight: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Demo:
    """One run of the demo in `folder`."""

    def __init__(
        self, folder: Path, seconds: float | None, simulate: bool, console: Console
    ) -> None:
        self.folder = folder.resolve()
        self._seconds = seconds
        self._simulate = simulate
        self._console = console
        self._report = Report()
        self._users: set[str] = set()
        self._amounts: dict[str, str] = {}

    def run(self) -> Report:
        """Everything; ends by itself, and leaves no process behind whatever happens."""
        began = time.monotonic()
        self._fresh_folder()
        orders = load_orders()
        made = bundled()
        start_ms = (made.manifest.trained_until_ms or 0) + 1
        if made.manifest.trained_until_ms is None:
            raise Refused("the bundled generation says no trained_until: reinstall the package")
        self._report.anonymous = orders.anonymous
        self._report.generation_before = self._report.generation_after = made.id
        self._amounts = {
            e: f"{abs(a):,.2f} GBP" if a > 0 else f"-{abs(a):,.2f} GBP"
            for e, a in zip(orders.event_ids, orders.amounts, strict=True)
        }
        self._console.print("Starting Apache Kafka and Valkey on this machine, loopback only ...")
        with Stack.started(self.folder / "stack") as stack:
            settings = self._settings(stack.bootstrap, stack.redis_url)
            self._write_where(settings)
            topics.apply(settings)
            history = self.folder / "history.parquet"
            count = write_history(history, start_ms)
            self._console.print(f"Folding {count:,} orders of the past into the store ...")
            asyncio.run(_prepare(settings, made, history))
            try:
                self._play(settings, orders, start_ms, history, began)
            finally:
                withdraw(self.folder)
        return self._report

    def _play(
        self, settings: Settings, orders: Orders, start_ms: int, history: Path, began: float
    ) -> None:
        end_ms = orders.times_ms[-1] + 1
        left = _PLAY_S
        if self._seconds:
            left = self._seconds - (time.monotonic() - began) - _SETTLE_S
        environment = _environment(settings)
        worker = Command(["run"], environment, self.folder / "worker.log")
        player = Player(settings.kafka, orders, start_ms, end_ms, max(5.0, left), self._simulate)
        listener = Listener(settings.kafka)
        retrain: Command | None = None
        lists: Lists | None = None
        middle_ms = min(start_ms + (end_ms - start_ms) // 2, end_ms - 90 * DAY_MS)
        try:
            listener.start()
            with Screen(self._console, "GBP", _join_in(self.folder)) as screen:
                self._await_values(listener, worker, screen, start_ms)
                player.start()
                while not player.finished:
                    self._look(listener, worker, player, screen, began)
                    passed = (player.clock_ms - start_ms) / (end_ms - start_ms)
                    if lists is None and player.clock_ms >= middle_ms:
                        lists = self._write_down(settings, orders, player.clock_ms, screen)
                    if retrain is None and passed >= _RETRAIN_AT:
                        retrain = self._retrain(environment, history, screen)
                    elif retrain is not None:
                        self._retrained(retrain, screen)
                    time.sleep(_LOOK_S)
                self._finish(listener, worker, player, screen, began, retrain)
        finally:
            player.stop()
            listener.stop()
            for command in (retrain, worker):
                if command is not None:
                    command.stop()
        if lists is not None:
            seen = look_back(orders, lists, min(end_ms, lists.at_ms + 90 * DAY_MS))
            self._show(seen)

    # ------------------------------------------------------------------ pieces

    def _fresh_folder(self) -> None:
        """The demo always begins anew; only what an earlier demo left is removed."""
        mark = self.folder / ".demo"
        if self.folder.exists() and any(self.folder.iterdir()) and not mark.exists():
            raise Refused(f"{self.folder} is not empty and not a demo's: name another with --dir")
        for name in ("stack", "data", "worker.log", "retrain.log", "retrain.json"):
            path = self.folder / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(True)
        self.folder.mkdir(parents=True, exist_ok=True)
        mark.touch()

    def _settings(self, bootstrap: str, redis_url: str) -> Settings:
        return Settings(
            kafka={"bootstrap": bootstrap, "partitions": PARTITIONS},
            store={"url": redis_url},
            worker={"clock": "log", "idle_after_s": 2.0},
        )

    def _write_where(self, settings: Settings) -> None:
        """So that `livevalue send`, `get` and `subscribe` find the demo from a second terminal."""
        announce(
            self.folder,
            kafka=settings.kafka.bootstrap,
            redis=settings.store.url.get_secret_value(),
            settings={
                "kafka": {"partitions": settings.kafka.partitions},
                "worker": {"clock": "log"},
            },
        )

    def _await_values(
        self, listener: Listener, worker: Command, screen: Screen, start_ms: int
    ) -> None:
        """Wait until the worker has published the values of the past's users."""
        until = time.monotonic() + _FIRST_VALUE_S
        while not self._updates(listener, screen):
            self._check(worker, None, listener)
            if time.monotonic() > until:
                raise Refused(
                    f"no value came within {_FIRST_VALUE_S:.0f} s:\n{worker.last_lines()}"
                )
            screen.show(start_ms, "the worker is starting", time.monotonic())
            time.sleep(_LOOK_S)

    def _updates(self, listener: Listener, screen: Screen) -> int:
        documents = listener.take()
        for document in documents:
            self._users.add(document["user_id"])
            amount = self._amounts.get(document["cause"].get("event_id") or "")
            if document["cause"]["type"] != "generation":
                screen.add(move_of(document, amount))
        self._report.updates += len(documents)
        return len(documents)

    def _look(
        self,
        listener: Listener,
        worker: Command,
        player: Player,
        screen: Screen,
        began: float,
    ) -> None:
        self._check(worker, player, listener)
        before = self._report.updates
        self._updates(listener, screen)
        if (
            self._report.first_value_s is None
            and player.first_sent_at is not None
            and self._report.updates > before
        ):
            self._report.first_value_s = round(time.monotonic() - began, 2)
        self._report.events, self._report.simulated = player.sent, player.simulated
        self._report.users = len(self._users)
        real = player.sent - player.simulated
        counts = f"{real:,} orders and refunds · {counted(self._report.updates, 'update')}"
        if player.simulated:
            counts += f" · {counted(player.simulated, 'simulated event')}"
        screen.show(player.clock_ms, counts, time.monotonic())

    def _check(self, worker: Command, player: Player | None, listener: Listener) -> None:
        if worker.exit_code is not None:
            raise Refused(f"the worker ended by itself:\n{worker.last_lines()}")
        for error in (player.error if player else None, listener.error):
            if error is not None:
                raise Refused(f"{type(error).__name__}: {error}") from error

    def _write_down(self, settings: Settings, orders: Orders, at_ms: int, screen: Screen) -> Lists:
        with ValueClient.connect(settings) as values:
            best = [document["user_id"] for document in values.top(TOP)]
        screen.say(f"Half-time: the top {TOP} by value and by past spend are written down.")
        return Lists(at_ms, best, past_spenders(orders, at_ms))

    def _retrain(self, environment: dict[str, str], history: Path, screen: Screen) -> Command:
        screen.say("A retrain on what has arrived begins in the background.")
        arguments = ["retrain", str(history), "kafka", "--base", str(history)]
        arguments += ["--json", str(self.folder / "retrain.json")]
        # One fit and no refits at origins, which would take longer than the demo: the bundled
        # generation has no recipe, so the gate compares files anyway.
        quick = {**environment, "LIVEVALUE_RETRAIN__ORIGINS": "0"}
        return Command(arguments, quick, self.folder / "retrain.log")

    def _retrained(self, retrain: Command, screen: Screen) -> bool:
        """Take in the outcome of the retrain once; True when there is one."""
        if retrain.exit_code is None:
            return False
        if self._report.reason != Report().reason:
            return True
        if retrain.exit_code != 0:
            self._report.reason = f"the retrain failed: {retrain.last_lines(1)}"
        else:
            facts = json.loads((self.folder / "retrain.json").read_text())
            self._report.promoted, self._report.reason = facts["promoted"], facts["reason"]
            if facts["promoted"]:
                self._report.generation_after = facts["generation"]
        verb = "swapped in" if self._report.promoted else "not swapped in"
        screen.say(f"The new generation was {verb}: {self._report.reason}")
        return True

    def _finish(
        self,
        listener: Listener,
        worker: Command,
        player: Player,
        screen: Screen,
        began: float,
        retrain: Command | None,
    ) -> None:
        """Let the last values arrive, and the retrain end where there is time for it."""
        settled = time.monotonic() + _SETTLE_S
        patience = settled + (0 if self._seconds else _RETRAIN_PATIENCE_S)
        while time.monotonic() < settled or (
            retrain is not None
            and not self._retrained(retrain, screen)
            and time.monotonic() < patience
        ):
            self._look(listener, worker, player, screen, began)
            time.sleep(_LOOK_S)
        if retrain is not None and not self._retrained(retrain, screen):
            self._report.reason = "the demo ended before the retrain did"
            screen.say(f"No new generation: {self._report.reason}; without --seconds it waits")

    def _show(self, seen: Hindsight) -> None:
        self._report.hindsight = seen.as_json()
        self._console.print(seen.table())


async def _prepare(settings: Settings, made: Generation, history: Path) -> None:
    """Publish the bundled generation and fold the past as the store's base."""
    stores = Stores(settings)
    try:
        registry = stores.registry()
        await registry.promote(await registry.publish(made))
    finally:
        await stores.close()
    await backfill(settings, [str(history)], "", None, FileOptions(), generation=made.id)


def _environment(settings: Settings) -> dict[str, str]:
    """The demo's settings for the commands that it runs."""
    return {
        "LIVEVALUE_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "LIVEVALUE_KAFKA__PARTITIONS": str(settings.kafka.partitions),
        "LIVEVALUE_STORE__URL": settings.store.url.get_secret_value(),
        "LIVEVALUE_WORKER__CLOCK": settings.worker.clock,
        "LIVEVALUE_WORKER__IDLE_AFTER_S": str(settings.worker.idle_after_s),
        "OMP_NUM_THREADS": "1",
    }


def _join_in(folder: Path) -> list[str]:
    """What to type in a second terminal, started where the demo was."""
    return [
        prefix(folder) + line
        for line in (
            "livevalue send purchase --user ada --amount 49.90",
            "livevalue get ada",
            "livevalue subscribe --user ada",
        )
    ]
