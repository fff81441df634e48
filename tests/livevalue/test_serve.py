"""`livevalue serve` as a person has it: a process, on real servers, asked over HTTP.

What only asks shares one server, which starts from nothing; the others have one of their own each,
a fork (tests.forks).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import redis
from kafka import KafkaProducer  # type: ignore[import-untyped]

from featurestore.partitioner import partition
from livevalue.embedded import Stack
from livevalue.embedded.ports import free
from livevalue.http.updates import Feed, message
from streams import broker, topics
from streams.settings import Settings
from tests.forks import COMMAND, Fork
from tests.livevalue.values import PARTITIONS, document, publish, settings

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<img src=x onerror=document.title='owned'>"
WORTH = {HOSTILE: 5.0, "ada": 10.0, "bob": 30.0, "a/b c?": 20.0, "zoë ✓": 40.0}


class Served:
    """A running `livevalue serve`."""

    def __init__(self, process: subprocess.Popen[bytes] | Fork, url: str, log: Path) -> None:
        self.process, self.url, self._log = process, url, log

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **arguments)

    def ready(self) -> None:
        deadline = time.monotonic() + 30
        while (answer := self.get("/readyz")).status_code != 200:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.2)

    @property
    def said(self) -> str:
        return self._log.read_text()


@contextmanager
def served(
    folder: Path, found: Settings, *arguments: str, fork: bool = True, **more: str
) -> Iterator[Served]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith("LIVEVALUE_")}
    names = ("bootstrap", "browse", "purchase", "interaction", "scores", "dlq", "partitions")
    kafka = {f"LIVEVALUE_KAFKA__{n.upper()}": str(getattr(found.kafka, n)) for n in names}
    url = found.store.url.get_secret_value()
    at, log = folder / "serve.json", folder / "serve.log"
    at.unlink(missing_ok=True)
    words = ["serve", "--port", "0", "--json", str(at), *arguments]
    env = {**kept, "PYTHONPATH": str(ROOT), **kafka, "LIVEVALUE_STORE__URL": url, **more}
    process: subprocess.Popen[bytes] | Fork
    log.write_text("")
    if fork:
        process = Fork(COMMAND, words, cwd=folder, env=env, stdout=log)
    else:
        with log.open("w") as file:
            command = [sys.executable, "-m", "livevalue.cli", *words]
            process = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder, env=env)
    try:
        deadline = time.monotonic() + 30
        while not (at.exists() and at.read_text().endswith("\n")):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        running = Served(process, json.loads(at.read_text())["url"], log)
        while True:  # the socket listens from the start; wait until somebody answers
            try:
                running.get("/livez")
                break
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        yield running
    finally:
        process.kill()
        process.wait()


class Listener:
    """Reads a stream in a thread; `events` holds what came, `ended` is set at its end."""

    def __init__(self, url: str, **arguments: Any) -> None:
        self.events: list[tuple[str, Any]] = []
        self.text = ""
        self.ended = threading.Event()
        self._url, self._arguments = url, arguments
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.until(lambda: "listening" in self.text)

    def _run(self) -> None:
        try:
            with httpx.stream("GET", self._url, timeout=60, **self._arguments) as answer:
                assert answer.status_code == 200
                name = ""
                for line in answer.iter_lines():
                    if not self.events:
                        self.text += line + "\n"
                    if line.startswith("event: "):
                        name = line[7:]
                    elif line.startswith("data: "):
                        self.events.append((name, json.loads(line[6:])))
        except httpx.TransportError:
            pass  # the server was killed
        finally:
            self.ended.set()

    def until(self, true: Any, patience_s: float = 20) -> None:
        deadline = time.monotonic() + patience_s
        while not true():
            assert time.monotonic() < deadline, self.events or self.text
            time.sleep(0.02)


def filled(stack: Stack, database: int, prefix: str) -> Settings:
    """A deployment with values of a few users."""
    found = settings(stack.bootstrap, stack.redis_url, database, prefix)
    redis.Redis.from_url(found.store.url.get_secret_value()).flushdb()
    topics.apply(found)
    asyncio.run(publish(found, WORTH))
    return found


@pytest.fixture
def deployment(stack: Stack, topic_prefix: str) -> Settings:
    return filled(stack, 12, topic_prefix)


@pytest.fixture
def running(deployment: Settings, tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, deployment) as server:
        server.ready()
        yield server


@pytest.fixture(scope="module")
def asked(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for everything that only asks."""
    found = filled(stack, 11, f"asked{os.getpid()}.")
    with served(tmp_path_factory.mktemp("asked"), found, fork=False) as server:
        server.ready()
        yield server


@pytest.fixture
def send(deployment: Settings) -> Iterator[Any]:
    """Publishes a document as a worker does, in a transaction; None erases."""
    producer = KafkaProducer(
        **broker.connection(deployment.kafka),
        acks="all",
        transactional_id=deployment.kafka.scores,
    )
    producer.init_transactions()

    def send(*users: str, value: Any = 1.0, commits: bool = True) -> None:
        producer.begin_transaction()
        for revision, user in enumerate(users, 1):
            text = None if value is None else json.dumps(document(user, value, revision)).encode()
            number = partition(user, PARTITIONS)
            producer.send(deployment.kafka.scores, text, key=user.encode(), partition=number)
        producer.flush()
        (producer.commit_transaction if commits else producer.abort_transaction)()

    yield send
    producer.close()


def test_values_come_as_the_client_reads_them(asked: Served) -> None:
    for user, value in WORTH.items():
        path = "/v1/users/" + quote(user, safe="")
        then = asked.get(path, params={"at": "2011-09-10T12:00:00+00:00"})
        assert then.json() == document(user, value)
        later = asked.get(path + "?at=2011-09-11T12:00:00%2B00:00").json()
        assert later["values"]["d90"] == {"expected": value * 0.75, "p_active": 0.375}
    assert asked.get("/v1/users/ada?at=2011-09-11T12:00:00+00:00").status_code == 200
    now = asked.get("/v1/users/ada").json()
    assert (now["values"]["d90"]["expected"], now["values"]["d90"]["p90"]) == (5.0, 3.0)
    ranked = [found["user_id"] for found in asked.get("/v1/top?n=3").json()]
    assert ranked == ["zoë ✓", "bob", "a/b c?"]
    meta = asked.get("/v1/meta").json()
    assert meta["unit"] == {"kind": "money", "code": "GBP"}
    assert meta["partitions"] == PARTITIONS and meta["clock"] == "wall"
    assert meta["now"].startswith("20")


@pytest.mark.parametrize(
    ("path", "status", "code", "words"),
    [
        ("/v1/users/nobody", 404, "unknown_user", "nobody"),
        ("/v1/users/", 404, "unknown_user", "no value is known"),
        ("/v1/users/ada?at=soon", 422, "invalid_request", "2011-09-10T12:00:00Z"),
        ("/v1/users/ada?at=0001-01-01T00:00:00%2B14:00", 422, "invalid_request", "no time"),
        ("/v1/top?n=0", 422, "invalid_request", "n: "),
        ("/v1/top?n=1001", 422, "invalid_request", "n: "),
        ("/v1/updates?user=", 422, "invalid_request", "user: "),
        ("/v1/nothing", 404, "not_found", "/docs"),
        ("/static/../app.py", 404, "not_found", "/docs"),
        ("/static/%2e%2e/app.py", 404, "not_found", "/docs"),
    ],
)
def test_a_wrong_question_is_answered_with_what_is_wrong(
    asked: Served, path: str, status: int, code: str, words: str
) -> None:
    answer = asked.get(path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "message"}
    assert answer.json()["error"] == code
    assert words in answer.json()["message"]


def test_a_stream_carries_committed_updates_of_all_or_of_one(running: Served, send: Any) -> None:
    everybody = Listener(f"{running.url}/v1/updates")
    only_bob = Listener(f"{running.url}/v1/updates", params={"user": "bob"})
    send("ada", "bob", value=9.0, commits=False)
    send("ada", "bob", "zoë ✓")
    send("bob", value=None)
    everybody.until(lambda: len(everybody.events) == 4)
    only_bob.until(lambda: len(only_bob.events) == 2)
    seen = {(name, data["user_id"]) for name, data in everybody.events}
    assert seen == {
        ("update", "ada"),
        ("update", "bob"),
        ("update", "zoë ✓"),
        ("erased", "bob"),
    }
    assert only_bob.events == [
        ("update", document("bob", 1.0, 2)),
        ("erased", {"user_id": "bob", "erased": True}),
    ]


def test_a_client_that_goes_is_forgotten(running: Served) -> None:
    with httpx.stream("GET", f"{running.url}/v1/updates", timeout=20) as answer:
        stream = answer.iter_raw()  # kept: its end would be the answer's
        next(stream)
        assert running.get("/readyz").json()["clients"] == 1
    deadline = time.monotonic() + 5
    while running.get("/readyz").json()["clients"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_three_seconds_with_streams_open(
    running: Served, number: signal.Signals
) -> None:
    streams = [Listener(f"{running.url}/v1/updates") for _ in range(3)]
    running.process.send_signal(number)
    assert running.process.wait(10) == 0
    for stream in streams:
        assert stream.ended.wait(5)
    assert running.said.endswith("Stopped.\n") and "Traceback" not in running.said


def test_a_client_that_reads_nothing_holds_up_neither_others_nor_the_end(
    running: Served, send: Any
) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        slow.sendall(f"GET /v1/updates HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        quick = Listener(f"{running.url}/v1/updates")
        for _ in range(8):  # 16 MB: more than sockets and the queue hold
            send(*["ada"] * 1000)
        quick.until(lambda: sum(name == "update" for name, _ in quick.events) == 8000)
        running.process.terminate()
        assert running.process.wait(10) == 0


async def test_a_slow_client_loses_the_oldest_and_is_told_how_many() -> None:
    feed = Feed(None, room=3)
    for i in range(5):
        feed.put(message("update", b"%d" % i))
    feed.end()
    text = b"".join([chunk async for chunk in feed.chunks()]).decode()
    assert re.findall(r"data: (.*)", text) == ['{"updates":2}', "2", "3", "4"]
    assert text.index("event: lost") < text.index("event: update")


async def test_a_silent_stream_has_a_heart() -> None:
    chunks = Feed(None).chunks(heartbeat_s=0.05)
    assert [await anext(chunks) for _ in range(3)][1:] == [b": heartbeat\n\n"] * 2


def test_what_is_published_cannot_forge_events() -> None:
    assert message("update", b'{\n"a":\r\n1}').count(b"\n") == 3


def test_without_redis_it_says_what_to_do(deployment: Settings, tmp_path: Path) -> None:
    away = deployment.model_copy(
        update={
            "store": type(deployment.store).model_validate(
                {"url": f"redis://127.0.0.1:{free(set())}/0"}
            )
        }
    )
    with served(tmp_path, away) as server:
        for path in ("/v1/users/ada", "/v1/top", "/v1/meta", "/readyz"):
            answer = server.get(path)
            assert answer.status_code == 503
            assert "LIVEVALUE_STORE__URL" in answer.json()["message"]
        assert server.get("/livez").status_code == 200


def test_without_kafka_values_are_read_and_streams_refused(
    deployment: Settings, tmp_path: Path
) -> None:
    kafka = deployment.kafka.model_copy(update={"bootstrap": f"127.0.0.1:{free(set())}"})
    with served(tmp_path, deployment.model_copy(update={"kafka": kafka})) as server:
        time.sleep(1)
        for path in ("/v1/updates", "/readyz"):
            answer = server.get(path)
            assert answer.status_code == 503
            assert "LIVEVALUE_KAFKA__BOOTSTRAP" in answer.json()["message"]
        assert server.get("/v1/users/ada").status_code == 200
        assert "Traceback" not in server.said


def test_a_token_guards_all_data(deployment: Settings, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("sesame-ü\n")
    where = str(tmp_path / "token")
    with served(tmp_path, deployment, LIVEVALUE_SERVE__TOKEN_FILE=where) as server:
        guarded = ("/v1/users/ada", "/v1/top", "/v1/meta", "/v1/updates", "/openapi.json")
        for path in guarded:
            for given in ({}, {"Authorization": "Bearer open"}, {"Authorization": "Basic x"}):
                answer = server.get(path, headers=given)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": b"Bearer " + "sesame-ü".encode()}
        assert server.get("/v1/users/ada", headers=right).status_code == 200
        for path in ("/", "/docs", "/static/console.js", "/livez"):
            assert server.get(path).status_code == 200
        assert "sesame" not in server.said


def test_another_address_without_a_token_is_warned_of(deployment: Settings, tmp_path: Path) -> None:
    with served(tmp_path, deployment, "--host", "0.0.0.0") as server:
        assert "there is no authentication" in server.said
    with served(
        tmp_path, deployment, "--host", "0.0.0.0", LIVEVALUE_SERVE__TOKEN="sesame"
    ) as server:
        assert "no authentication" not in server.said


def test_a_name_that_points_here_is_not_answered(asked: Served) -> None:
    answer = asked.get("/v1/top", headers={"Host": "rebound.example"})
    assert (answer.status_code, answer.json()["error"]) == (421, "wrong_host")
    assert asked.get("/v1/top", headers={"Host": "localhost:1"}).status_code == 200


def test_pages_hold_nothing_inline_and_load_nothing_from_elsewhere(asked: Served) -> None:
    loaded = set()
    for path in ("/", "/docs"):
        page = asked.get(path)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"<style|style=|\son\w+=|<script(?! src=\"/static/)", page.text)
        found = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
        assert all(re.match(r"/(?!/)", address) for address in found)
        loaded |= {address for address in found if address.startswith("/static/")}
    assert len(loaded) == 6
    for address in loaded:
        text = asked.get(address)
        assert text.status_code == 200
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text.text
        )
        assert "://" not in text.text.replace("http://www.w3.org/2000/svg", "")


def test_the_address_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "livevalue.cli", "serve", "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert done.returncode == 1
    assert done.stderr.startswith("livevalue: cannot serve at 127.0.0.1:")
    assert "--port" in done.stderr and len(done.stderr.splitlines()) == 1


def test_other_commands_do_not_load_the_web_server() -> None:
    code = (
        "import sys, livevalue.client, livevalue.cli, streams.settings;"
        "print([m for m in ('fastapi', 'uvicorn', 'starlette') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_console_shows_a_hostile_name_as_text(asked: Served, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    done = subprocess.run(
        [chromium, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         "--virtual-time-budget=6000", f"{asked.url}/#{quote(HOSTILE, safe='')}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "<title>Livevalue</title>" in done.stdout
    assert f"<bdi>{escape(HOSTILE, quote=False)}</bdi>" in done.stdout
    assert "polyline" in done.stdout, "with the silence curve"
    assert "<img src=x" not in done.stdout
