"""The command line as a person has it: a process, its exit code, what it prints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from featurestore.partitioner import partition
from livevalue.embedded import Stack
from livevalue.embedded.ports import free
from streams import topics
from tests import forks
from tests.livevalue.values import publish, settings

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _environment(more: dict[str, str]) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith("LIVEVALUE_")}
    if "LIVEVALUE_CACHE" in os.environ:
        kept["LIVEVALUE_CACHE"] = os.environ["LIVEVALUE_CACHE"]
    return {**kept, "PYTHONPATH": str(ROOT), **more}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """One command to its end, in an empty working directory."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return forks.run(arguments, cwd=tmp_path, env=_environment(environment), timeout=60)

    return run


@pytest.fixture
def deployed(stack: Stack, topic_prefix: str) -> dict[str, str]:
    """The environment of a deployment with its topics made."""
    found = settings(stack.bootstrap, stack.redis_url, 10, topic_prefix)
    topics.apply(found)
    kafka = found.kafka
    names = ("bootstrap", "browse", "purchase", "interaction", "scores", "dlq", "partitions")
    said = {f"LIVEVALUE_KAFKA__{name.upper()}": str(getattr(kafka, name)) for name in names}
    return {**said, "LIVEVALUE_STORE__URL": found.store.url.get_secret_value()}


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("livevalue: ")
    return lines[0]


COMMANDS = ["up", "topics", "settings", "doctor", "send", "get", "top", "subscribe"]
GROUPS = ["stores", "dlq", "recover", "generations"]


@pytest.mark.parametrize("command", COMMANDS + GROUPS)
def test_help_teaches_with_an_example(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0, done.stderr
    if command in GROUPS:
        assert run(command).stdout.strip() == done.stdout.strip()  # a group alone says it, too
    assert "Example:" in done.stdout
    assert f"livevalue {command}" in done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        ("topics",),
        ("topics", "--plan", "--apply"),
        ("send",),
        ("send", "brows", "--user", "ada"),
        ("get",),
        ("get", "ada", "--at", "yesterday"),
        ("dlq", "show", "7"),
        ("dlq", "show", "0:-1"),
        ("nonsense",),
    ],
)
def test_wrong_usage_is_exit_code_two(run: Run, wrong: tuple[str, ...]) -> None:
    done = run(*wrong)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_no_broker_is_one_line(run: Run) -> None:
    assert "set LIVEVALUE_KAFKA__BOOTSTRAP" in _one_line(run("topics", "--plan"))


def test_a_broker_that_does_not_answer_is_one_line(run: Run) -> None:
    address = f"127.0.0.1:{free(set())}"
    said = _one_line(run("topics", "--plan", LIVEVALUE_KAFKA__BOOTSTRAP=address))
    assert f"no broker answers at {address}" in said


def test_a_redis_that_does_not_answer_is_one_line(run: Run) -> None:
    url = f"redis://127.0.0.1:{free(set())}/0"
    said = _one_line(run("get", "ada", LIVEVALUE_STORE__URL=url))
    assert "cannot be reached" in said and "start it (`livevalue up` brings one)" in said


def test_an_event_that_lacks_a_field_names_the_option(run: Run) -> None:
    wanting = run("send", "purchase", "--user", "ada")
    assert "this purchase has no amount: give --amount" in _one_line(wanting)
    wrong = run("send", "purchase", "--user", "ada", "--amount", "much")
    assert "not accepted: amount: not a decimal number: 'much'" in _one_line(wrong)


def test_a_wrong_setting_is_named_as_it_is_set(run: Run) -> None:
    said = _one_line(run("settings", LIVEVALUE_KAFKA__PARTITIONS="none"))
    assert "LIVEVALUE_KAFKA__PARTITIONS" in said
    said = _one_line(run("settings", LIVEVALUE_KAFKA__BOOTSTRAPP="x"))
    assert "LIVEVALUE_KAFKA__BOOTSTRAPP is no setting" in said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LIVEVALUE_VALUE__RULES", "xx", "lists and tables are JSON"),
        ("LIVEVALUE_FEATURES__LATENESS_BY_TOPIC", "{", "lists and tables are JSON"),
        ("LIVEVALUE_KAFAK__PARTITIONS", "7", "is LIVEVALUE_KAFKA__PARTITIONS meant?"),
        ("LIVEVALUE_MODEL__HEADLINE", "d8", "d7, d30, d90 (it is 'd8')"),
    ],
)
def test_a_mistake_in_the_environment_is_one_line(
    run: Run, name: str, value: str, said: str
) -> None:
    line = _one_line(run("get", "ada", **{name: value}))
    assert name in line
    assert said in line


@pytest.mark.parametrize(
    ("text", "said"), [("[kafka", "is not TOML"), ("kafka=3", "kafka is a section: write [kafka]")]
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(
    run: Run, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "livevalue.toml").write_text(text)
    line = _one_line(run("get", "ada"))
    assert "livevalue.toml" in line
    assert said in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIVEVALUE_DEBUG", ""),
        ("LIVEVALUE_VALUE__RULES", "xx"),
        ("LIVEVALUE_KAFKA__BOOTSTRAP", "127.0.0.1:1"),
    ],
)
def test_a_worker_that_faust_cannot_start_ends_with_one_line(
    tmp_path: Path, name: str, value: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "faust", "-A", "streams.app", "worker"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=_environment({name: value}),
    )
    wanted = name if value else "LIVEVALUE_KAFKA__BOOTSTRAP"
    assert wanted in _one_line(done)


def test_a_broker_that_goes_as_a_worker_starts_ends_it_soon(tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(
        "from streams import app\n"
        "async def nothing_is_wrong(*_): ...\n"
        "app.preflight = nothing_is_wrong\n"
        "app.main()\n"
    )
    gone = _environment({"LIVEVALUE_KAFKA__BOOTSTRAP": "127.0.0.1:1"})
    done = subprocess.run(
        [sys.executable, "start.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=gone,
        timeout=30,  # with something to finish it may take 40 s
    )
    assert done.returncode == 1
    assert "not stopped within 5 s: is the broker up?" in done.stderr


def test_a_missing_topic_says_what_to_run(run: Run, deployed: dict[str, str]) -> None:
    more = {**deployed, "LIVEVALUE_KAFKA__PURCHASE": "nowhere"}
    done = run("send", "purchase", "--user", "ada", "--amount", "1", **more)
    assert "livevalue topics --apply" in _one_line(done)


def test_topics_plan_and_apply_as_json(run: Run, stack: Stack, topic_prefix: str) -> None:
    environment = {
        "LIVEVALUE_KAFKA__BOOTSTRAP": stack.bootstrap,
        "LIVEVALUE_KAFKA__MIXED": f"{topic_prefix}events",
        "LIVEVALUE_KAFKA__SCORES": f"{topic_prefix}scores",
        "LIVEVALUE_KAFKA__DLQ": f"{topic_prefix}dlq",
        "LIVEVALUE_KAFKA__PARTITIONS": "2",
    }
    for arguments, actions in (
        (("--plan",), {"create"}),
        (("--apply",), {"create"}),
        (("--plan",), {"keep"}),
    ):
        done = run("topics", *arguments, "--json", "-", **environment)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert {topic["action"] for topic in found["topics"]} == actions
        assert found["problems"] == []


def test_topics_that_no_worker_can_use_are_exit_code_one(
    run: Run, deployed: dict[str, str]
) -> None:
    done = run("topics", "--apply", **{**deployed, "LIVEVALUE_KAFKA__PARTITIONS": "5"})
    assert done.returncode == 1
    assert "set LIVEVALUE_KAFKA__PARTITIONS=3" in done.stdout


def test_send_puts_the_event_where_the_worker_expects_it(
    run: Run, deployed: dict[str, str]
) -> None:
    done = run(
        *("send", "purchase", "--user", "zoë", "--amount", "49.90", "--order", "o1"),
        *("--time", "2011-09-10T12:00:00Z", "--json", "-"),
        **deployed,
    )
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    assert sent["partition"] == partition("zoë", 3)
    record = _read(deployed, sent["topic"], sent["partition"])[sent["offset"]]
    assert record.key == "zoë".encode()
    event = json.loads(record.value)
    assert event.pop("event_id")
    assert event == {
        "type": "purchase",
        "user_id": "zoë",
        "event_time": "2011-09-10T12:00:00Z",
        "amount": "49.90",
        "order_id": "o1",
    }


def test_send_refuses_what_the_worker_would_reject(run: Run, deployed: dict[str, str]) -> None:
    done = run("send", "purchase", "--user", "ada", "--amount", "1e999", **deployed)
    assert "not accepted: amount" in _one_line(done)
    done = run(
        *("send", "purchase", "--user", "ada", "--amount", "1", "--currency", "XTS"), **deployed
    )
    assert "no rate of XTS to GBP: add one to value.rates" in _one_line(done)


def test_send_a_file_in_time_order(run: Run, deployed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text(
        "when,who,total\n"
        "2011-01-03T00:00:00Z,ada,3\n"
        "2011-01-01T00:00:00Z,ada,1\n"
        "2011-01-02T00:00:00Z,,2\n"
        "2011-01-02T00:00:00Z,ada,2.50\n"
    )
    (tmp_path / "foreign.jsonl").write_text(
        '{"type":"purchase","user_id":"cleo","event_time":5,"amount":"4","currency":"XTS"}\n'
        '{"type":"purchase","user_id":"cleo","event_time":6,"amount":"4","currency":"GBP"}\n'
    )
    done = run("send", "--from", "foreign.jsonl", **deployed)
    assert done.stdout.startswith("1 event sent; ")
    assert "1 rejected_unknown_currency" in done.stdout
    assert "! foreign.jsonl:1: unknown_currency: no rate of XTS" in done.stdout
    done = run(
        *("send", "purchase", "--from", "orders.csv", "--json", "sent.json"),
        *("--columns", "event_time=when,user_id=who,amount=total"),
        **deployed,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "sent.json").read_text())
    assert (result["sent"], result["anonymous"]) == (3, 1)
    found = _read(deployed, deployed["LIVEVALUE_KAFKA__PURCHASE"], partition("ada", 3))
    records = [r for r in found if r.key == b"ada"]
    assert [json.loads(r.value)["amount"] for r in records] == ["1", "2.50", "3"]
    assert [r.timestamp for r in records] == sorted(r.timestamp for r in records)


def test_a_file_of_which_nothing_is_sent_says_what_to_type(
    run: Run, deployed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "cdnow.csv").write_text("user_id,event_time,amount\nada,2011-01-03T00:00:00Z,3\n")
    done = run("send", "--from", "cdnow.csv", **deployed)
    assert "nothing was sent, 1 row rejected" in _one_line(done)
    assert "! cdnow.csv:1: missing_field: type: say which" in done.stdout
    assert "`livevalue send purchase --from cdnow.csv`" in done.stdout
    assert "--type" not in done.stdout + done.stderr
    done = run("send", "order", "--from", "cdnow.csv", **deployed)
    assert done.returncode == 2
    assert "is no type of event" in done.stderr


def test_piped_settings_are_whole_lines(run: Run) -> None:
    done = run("settings", LIVEVALUE_KAFKA__PARTITIONS="7", LIVEVALUE_KAFKA__BROWSE="b" * 90)
    (line,) = [line for line in done.stdout.splitlines() if "KAFKA__PARTITIONS" in line]
    assert line.split()[:3] == ["LIVEVALUE_KAFKA__PARTITIONS", "7", "environment"]
    assert "b" * 90 in done.stdout


def test_rate_slows_a_file_down(run: Run, deployed: dict[str, str], tmp_path: Path) -> None:
    lines = (
        json.dumps({"type": "browse", "user_id": f"u{i}", "event_time": 1000 * i})
        for i in range(40)
    )
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    began = time.monotonic()
    done = run("send", "--from", "log.jsonl", "--rate", "20", **deployed)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began > 1.9


async def test_get_and_top_show_values(run: Run, deployed: dict[str, str]) -> None:
    found = settings(
        deployed["LIVEVALUE_KAFKA__BOOTSTRAP"],
        deployed["LIVEVALUE_STORE__URL"],
        11,
    )
    _flush(found.store.url.get_secret_value())
    await publish(found, {"ada": 10.0, "bob": 30.0})
    more = {**deployed, "LIVEVALUE_STORE__URL": found.store.url.get_secret_value()}
    done = run("get", "ada", "--at", "2011-09-11T12:00:00Z", "--json", "-", **more)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["values"]["d90"]["expected"] == 7.5
    done = run("top", "-n", "1", "--json", "top.json", **more)
    assert done.returncode == 0, done.stderr
    assert "bob" in done.stdout
    assert "ada" not in done.stdout
    done = run("get", "nobody", **more)
    line = _one_line(done)
    assert "no value is known of user 'nobody'" in line and "since they were erased" in line


def test_doctor_says_what_is_well(run: Run, deployed: dict[str, str]) -> None:
    done = run("doctor", "--json", "-", **deployed)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, done.stdout
    assert set(checks) >= {"versions", "settings", "broker", "topics", "partitioner", "redis"}
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert checks["topics"]["message"].endswith(" partitions each")
    prefix = deployed["LIVEVALUE_KAFKA__SCORES"].removesuffix("scores")
    small = {
        f"LIVEVALUE_KAFKA__{name}": f"{prefix}one-{name}" for name in ("MIXED", "SCORES", "DLQ")
    }
    small = {**deployed, **small, "LIVEVALUE_KAFKA__PARTITIONS": "1"}
    assert run("topics", "--apply", **small).returncode == 0
    assert f"{prefix}one-MIXED with 1 partition each\n" in run("doctor", **small).stdout


def test_doctor_warns_of_an_armed_crash_point(run: Run, deployed: dict[str, str]) -> None:
    done = run("doctor", "--json", "-", **deployed, LIVEVALUE_CRASH="after_commit:3")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, done.stdout
    assert checks["crash point"]["status"] == "warning"
    assert "LIVEVALUE_CRASH=after_commit:3" in checks["crash point"]["message"]


def test_doctor_finds_the_producers_partitioner(run: Run, deployed: dict[str, str]) -> None:
    users = [f"u{i}" for i in range(12)]
    as_crc32 = {**deployed, "LIVEVALUE_KAFKA__PARTITIONER": "crc32"}
    for user in users:
        now = time.time_ns() // 1_000_000
        from livevalue import sending

        sending.send(_settings(as_crc32), sending.event("browse", user, {}, now))
    done = run("doctor", **deployed)
    assert done.returncode == 1
    assert "set LIVEVALUE_KAFKA__PARTITIONER=crc32" in done.stdout
    assert run("doctor", **as_crc32).returncode == 0


@pytest.fixture
def up(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "livevalue.cli", "up"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=_environment({}),
    )
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_up_serves_a_second_terminal_and_stops_cleanly(
    up: subprocess.Popen[str], run: Run, tmp_path: Path, how: signal.Signals
) -> None:
    assert up.stdout is not None
    said = [up.stdout.readline()]
    while said[-1] and not said[-1].startswith("Ready."):
        said.append(up.stdout.readline())
    assert said[-1], "".join(said)
    found = json.loads((tmp_path / ".livevalue" / "stack.json").read_text())
    assert found["pid"] == up.pid
    assert found["redis"].startswith("redis://127.0.0.1:")

    done = run("send", "browse", "--user", "ada")
    assert done.returncode == 0, done.stderr
    assert run("doctor").returncode == 0
    assert f"in use by a stack of process {up.pid}" in _one_line(run("up"))
    children = psutil.Process(up.pid).children(recursive=True)
    assert len(children) == 4

    up.send_signal(how)
    assert up.wait(20) == 0
    assert not (tmp_path / ".livevalue" / "stack.json").exists()
    assert not [child for child in children if child.is_running()]
    assert "set LIVEVALUE_KAFKA__BOOTSTRAP" in _one_line(run("topics", "--plan"))


def test_up_ends_when_its_broker_is_gone(up: subprocess.Popen[str]) -> None:
    assert up.stdout is not None
    while not (line := up.stdout.readline()).startswith("Ready."):
        assert line, "up ended before it was ready"
    for child in psutil.Process(up.pid).children(recursive=True):
        if child.name() == "java":
            child.kill()
    assert up.wait(20) == 1
    assert "kafka has ended" in up.stdout.read()


def _settings(environment: dict[str, str]) -> Any:
    kafka = {
        name.removeprefix("LIVEVALUE_KAFKA__").lower(): value
        for name, value in environment.items()
        if name.startswith("LIVEVALUE_KAFKA__")
    }
    from streams.settings import KafkaSettings, Settings

    return Settings(kafka=KafkaSettings.model_validate(kafka))


def _read(environment: dict[str, str], topic: str, number: int) -> list[Any]:
    consumer = KafkaConsumer(bootstrap_servers=environment["LIVEVALUE_KAFKA__BOOTSTRAP"])
    tp = TopicPartition(topic, number)
    consumer.assign([tp])
    consumer.seek_to_beginning(tp)
    end = consumer.end_offsets([tp])[tp]
    found: list[Any] = []
    give_up = time.monotonic() + 20
    while len(found) < end and time.monotonic() < give_up:
        for page in consumer.poll(200).values():
            found += page
    consumer.close()
    return found


def _flush(url: str) -> None:
    import redis

    redis.Redis.from_url(url).flushdb()
