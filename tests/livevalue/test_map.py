"""Vendors' streams in: golden files by vendor, the traps of each, and the command on real Kafka.

tests/golden/mappings holds for each mapping the messages as the vendor's public specification shows
them (`.in.jsonl`) and, line by line, what became of every event in them (`.out.jsonl`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # type: ignore[import-untyped]
from kafka.admin import KafkaAdminClient, NewTopic  # type: ignore[import-untyped]

from featurestore.events import parse
from featurestore.partitioner import partition
from livevalue.embedded import Stack
from livevalue.mapping import amounts
from livevalue.mapping.engine import ADVICE, Mapper, Outcome
from livevalue.mapping.report import Report
from livevalue.mapping.spec import load, names
from livevalue.output import Refused
from streams import topics
from streams.codec import Codec
from streams.log import FileRecord
from streams.settings import KafkaSettings, Settings
from tests import forks
from tests.livevalue.values import settings

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "mappings"


def _messages(name: str) -> list[bytes]:
    return (GOLDEN / f"{name}.in.jsonl").read_bytes().splitlines()


def _said(outcome: Outcome) -> dict[str, Any]:
    if outcome.event is not None:
        return outcome.event
    fields = ("status", "name", "reason", "detail")
    return {field: value for field in fields if (value := getattr(outcome, field))}


def _track(event: str, more: dict[str, Any] | None = None, **properties: Any) -> bytes:
    message: dict[str, Any] = {
        "type": "track",
        "event": event,
        "messageId": "m-1",
        "userId": "ada",
        "timestamp": "2024-01-01T00:00:00Z",
        "properties": properties,
    }
    return orjson.dumps(message | (more or {}))


def _one(raw: bytes, mapper: Mapper | None = None) -> Outcome:
    (outcome,) = (mapper or Mapper(load("segment"))).map(raw)
    return outcome


# ---- golden files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_messages_of_the_public_specification_become_our_events(name: str) -> None:
    mapper = Mapper(load(name))
    expected = [json.loads(line) for line in (GOLDEN / f"{name}.out.jsonl").open()]
    assert [[_said(one) for one in mapper.map(raw)] for raw in _messages(name)] == expected


@pytest.mark.parametrize("name", names())
def test_every_mapped_event_is_accepted_by_the_worker_s_codec(name: str) -> None:
    rates = [
        {"currency": code, "since": "2000-01-01", "rate": "1"} for code in ("USD", "JPY", "KWD")
    ]
    found = Settings.model_validate(
        {
            "kafka": KafkaSettings(mixed="events", partitions=1),
            "value": {"currency": "EUR", "rates": rates},
        }
    )
    mapper = Mapper(load(name))
    mapped = [one for raw in _messages(name) for one in mapper.map(raw) if one.event]
    records = [
        FileRecord(
            one.event["user_id"].encode(), orjson.dumps(one.event), at, one.time_ms, 0, "golden"
        )
        for at, one in enumerate(mapped)
        if one.event
    ]
    decoded = Codec(found).decode(0, 0, records)
    assert decoded.rejected == []
    assert (decoded.unknown_fields, decoded.no_id) == (0, 0)
    assert len(decoded.batch.events) == len(mapped) > 2


@pytest.mark.parametrize("name", names())
def test_a_stream_that_is_read_again_gives_the_same_ids(name: str) -> None:
    def ids() -> list[str]:
        mapper = Mapper(load(name), separate=True)
        outcomes = [one for raw in _messages(name) for one in mapper.map(raw)]
        return [one.event["event_id"] for one in outcomes if one.event]

    assert ids() == ids()
    assert len(set(ids())) == len(ids())


@pytest.mark.parametrize("name", names())
def test_no_rule_is_hidden_by_one_before_it(name: str) -> None:
    spec = load(name)
    own = spec.rules if name in ("segment", "ga4") else ()
    seen = [spec.plain(one) for rule in own for one in rule.names]
    assert len(seen) == len(set(seen))


# ---- traps -------------------------------------------------------------------------------------


def test_the_device_s_uncorrected_clock_is_never_taken() -> None:
    raw = _track("Product Viewed", {"originalTimestamp": "2020-01-01T00:00:00Z"})
    assert _one(raw).time_ms == 1704067200000
    without = json.loads(raw)
    del without["timestamp"]
    without["sentAt"] = "2020-01-01T00:00:00Z"
    assert _one(orjson.dumps(without)).reason == "missing_time"


def test_a_number_keeps_its_own_digits() -> None:
    raw = _track("Order Completed", order_id="o", currency="USD")
    raw = raw.replace(b'"order_id"', b'"revenue":1234567890.123456,"order_id"')
    event = _one(raw).event
    assert event is not None
    assert event["amount"] == "1234567890.123456"


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        ("1.299,00", "invalid_amount"),
        ("$5", "invalid_amount"),
        (True, "invalid_amount"),
        ([5], "invalid_amount"),
        ("9" * 80, "invalid_amount"),
        ("1e999999999", "invalid_amount"),
        (-5, "invalid_amount"),
        (" ", "missing_amount"),
        (None, "missing_amount"),
    ],
)
def test_an_amount_is_never_guessed(given_: Any, reason: str) -> None:
    assert _one(_track("Order Completed", revenue=given_, currency="USD")).reason == reason


def test_an_amount_without_a_currency_needs_a_setting() -> None:
    raw = _track("Order Completed", revenue=5)
    assert _one(raw).reason == "missing_currency"
    spec = load("segment")
    money = spec.money.model_copy(update={"default_currency": "EUR"})
    event = _one(raw, Mapper(spec.model_copy(update={"money": money}))).event
    assert event is not None
    assert event["currency"] == "EUR"


@pytest.mark.parametrize(
    ("code", "major"), [("USD", "12.34"), ("JPY", "1234"), ("KWD", "1.234"), ("CLF", "0.1234")]
)
def test_minor_units_go_by_the_currency_s_exponent(code: str, major: str) -> None:
    assert amounts.major(Decimal(1234), "minor", code) == Decimal(major)


@pytest.mark.parametrize(("amount", "code"), [("12.5", "USD"), ("12", "XXX"), ("12", "")])
def test_what_cannot_be_a_minor_unit_is_refused(amount: str, code: str) -> None:
    with pytest.raises(amounts.NotMoney):
        amounts.major(Decimal(amount), "minor", code)


@pytest.mark.parametrize("said", [30, -30, "30.00"])
def test_a_refund_is_negative_whatever_its_sign(said: Any) -> None:
    event = _one(_track("Order Refunded", order_id="o", total=said, currency="USD")).event
    assert event is not None
    assert event["amount"] == "-30"


def test_a_refund_without_an_amount_takes_what_is_left_of_its_order_or_is_parked() -> None:
    mapper = Mapper(load("segment"))
    blank = _track("Order Refunded", {"messageId": "r-2"}, order_id="o")
    assert _one(blank, mapper).reason == "refund_without_amount"
    _one(_track("Order Completed", order_id="o", revenue=50, currency="USD"), mapper)
    some = _track("Order Refunded", {"messageId": "r-1"}, order_id="o", total=20, currency="USD")
    _one(some, mapper)
    for _ in range(2):  # said again, it stays what it was
        event = _one(blank, mapper).event
        assert event is not None
        assert (event["amount"], event["currency"]) == ("-30", "USD")
    other = _track("Order Refunded", {"messageId": "r-3"}, order_id="o")
    assert _one(other, mapper).reason == "refund_without_amount"
    stranger = _track("Order Refunded", {"userId": "bob"}, order_id="o")
    assert _one(stranger, mapper).reason == "refund_without_amount"


def test_an_order_that_comes_again_under_another_id_is_counted_once() -> None:
    mapper = Mapper(load("segment"))
    first = _track("Order Completed", order_id="o", revenue=50, currency="USD")
    assert _one(first, mapper).status == "mapped"
    assert _one(first, mapper).status == "mapped"  # the same id: the fold drops it
    again = _track(
        "Order Completed", {"messageId": "m-2"}, order_id="o", revenue=50, currency="USD"
    )
    assert _one(again, mapper).reason == "repeated_order"


def test_a_visitor_is_skipped_or_a_user_of_their_own_by_policy() -> None:
    raw = _track("Product Viewed", {"userId": None, "anonymousId": "v-1"}, product_id="p")
    assert _one(raw).status == "anonymous"
    event = _one(raw, Mapper(load("segment"), separate=True)).event
    assert event is not None
    assert event["user_id"] == "v-1"


def test_an_id_too_long_for_the_contract_becomes_a_stable_one() -> None:
    event = _one(_track("Product Viewed", {"messageId": "x" * 200})).event
    assert event is not None
    assert len(event["event_id"]) == 36


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "not_json"),
        (b"", "not_json"),
        (b"\xff{}", "not_json"),
        (b'{"type": NaN}', "not_json"),
        (b"[" * 200, "not_json"),
        (b"[]", "not_object"),
        (b"{}", "missing_name"),
        (b'{"batch": 5}', "not_object"),
        (b'{"batch": [5]}', "not_object"),
        (b'{"type": "track"}', "missing_name"),
        (b" " * (2 << 20), "too_large"),
    ],
)
def test_what_is_no_message_is_parked_with_a_reason(raw: bytes | None, reason: str) -> None:
    (outcome,) = Mapper(load("segment")).map(raw)
    assert (outcome.status, outcome.reason) == ("parked", reason)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["2024-01-01T00:00:00Z", "USD", "19.90", "1e400", "1690000000000000", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(name=st.sampled_from(names()), at=st.integers(0, 200), data=st.data())
def test_whatever_stands_in_a_message_it_is_valid_or_parked(
    name: str, at: int, data: st.DataObject
) -> None:
    lines = _messages(name)
    message = json.loads(lines[at % len(lines)])
    for _ in range(data.draw(st.integers(1, 3))):
        spot: Any = message
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(spot[key], dict | list) and spot[key] and data.draw(st.booleans()):
                spot = spot[key]
                continue
            spot[key] = data.draw(_JSON)
            break
    _holds(Mapper(load(name), separate=True), json.dumps(message).encode())


_ODD: list[Any] = [None, True, False, 0, -1, 10**20, 0.5, 1e300, [], [[]], [True], ["x"], {}]
_ODD += ["", " ", "\u00b2", "\u0663", "1e400", "\0", "USD", {"a": 1}, {"0": {"price": []}}]


def _spots(found: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a message: what holds it, and by which key."""
    for key in list(found) if isinstance(found, dict) else range(len(found)):
        yield found, key
        if isinstance(found[key], dict | list):
            yield from _spots(found[key])


@pytest.mark.parametrize("name", names())
def test_any_field_may_hold_anything(name: str) -> None:
    mapper, odds = Mapper(load(name), separate=True), cycle(_ODD)
    for line in _messages(name):
        message = json.loads(line)
        for holder, key in list(_spots(message)):
            there = holder[key]
            for odd in islice(odds, 5):  # in turn: every field has some, a kind of field has all
                holder[key] = odd
                _holds(mapper, json.dumps(message).encode())
            holder[key] = there


def _holds(mapper: Mapper, raw: bytes) -> None:
    """What comes of a message is an event that the worker takes, or has a reason with advice."""
    report = Report()
    outcomes = mapper.map(raw)
    report.add("here", outcomes)
    for outcome in outcomes:
        if outcome.event is not None:
            event = parse(orjson.dumps(outcome.event))
            assert event.event_id
            assert outcome.micro == 0 or event.type == "purchase"
        elif outcome.status == "parked":
            assert outcome.reason in ADVICE
    assert len(report.worst()) <= 10


# ---- mappings of one's own ---------------------------------------------------------------------


def test_a_mapping_of_one_s_own_extends_one_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(
        'extends = "segment"\nname = "shop"\n'
        '[money]\nunit = "minor"\n'
        '[[rules]]\nnames = ["Button Pressed"]\ntype = "interaction"\naction = "press"\n'
        '[[rules]]\nnames = ["Product Viewed"]\ntype = "ignore"\n'
        '[[rules]]\nnames = ["Ticket Bought"]\ntype = "purchase"\nmoney_unit = "micro"\n'
        'id = { paths = ["properties.order_id"] }\n'
    )
    mapper = Mapper(load(str(path)))
    pressed = _one(_track("Button Pressed"), mapper).event
    assert pressed is not None
    assert pressed["action"] == "press"
    assert _one(_track("Product Viewed"), mapper).status == "ignored"
    assert _one(_track("Order Completed", revenue=1999, currency="EUR"), mapper).micro == 19_990_000
    bought = _one(_track("Ticket Bought", revenue=4990000, currency="EUR", order_id="o-1"), mapper)
    assert bought.event is not None
    assert (bought.micro, bought.event["event_id"]) == (4_990_000, "o-1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('extends = "segment"\n[money]\nunits = "minor"\n', "money.units"),
        ('extends = "segment"\n[[rules]]\nnames = ["a"]\ntype = "buy"\n', "rules.0.type"),
        ('extends = "nobody"\n', "no mapping 'nobody'"),
        ("= 5", "is no TOML"),
        ('name = "x"\n', "event_name"),
    ],
)
def test_a_wrong_mapping_is_refused_by_the_name_of_what_is_wrong(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(Refused, match=said.replace(".", r"\.")):
        load(str(path))


def test_a_mapping_that_extends_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.toml"
    path.write_text(f'extends = "{path}"\n')
    with pytest.raises(Refused, match="circle"):
        load(str(path))


# ---- the report --------------------------------------------------------------------------------


def test_the_worst_records_are_lost_money_first_then_the_most_frequent() -> None:
    mapper, report = Mapper(load("segment")), Report()
    for at in range(30):
        bad = _track("Product Viewed", {"timestamp": "yesterday"})
        report.add(f"topic/0:{at}", mapper.map(bad))
    report.add("topic/0:30", mapper.map(_track("Order Completed", revenue=5)))
    report.add("topic/0:31", mapper.map(_track("Button Pressed")))
    worst = report.worst()
    assert [bad["reason"] for bad in worst] == ["missing_currency"] + ["invalid_time"] * 9
    assert (worst[0]["at"], worst[1]["like_it"]) == ("topic/0:30", 30)
    assert "--currency" in worst[0]["change"]
    rows = {row["name"]: row for row in report.names()}
    assert (rows["Product Viewed"]["parked"], rows["Button Pressed"]["ignored"]) == (30, 1)
    assert (rows["Product Viewed"]["in_mapping"], rows["Button Pressed"]["in_mapping"]) == (
        True,
        False,
    )


# ---- the command -------------------------------------------------------------------------------


def _environment(more: dict[str, str]) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith("LIVEVALUE_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def _run(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return forks.run(["map", *arguments], cwd=cwd, env=_environment(environment), timeout=120)


def test_a_dry_run_of_a_file_needs_no_broker(tmp_path: Path) -> None:
    source = str(GOLDEN / "segment.in.jsonl")
    done = _run(tmp_path, "--source", source, "--as", "segment", "--dry-run", "--json", "out.json")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "out.json").read_text())
    assert said["messages"] == len(_messages("segment"))
    assert sum(said[status] for status in ("mapped", "ignored", "anonymous", "parked")) == 55
    assert 0 < len(said["worst"]) <= 10
    assert "refund_without_amount" in said["reasons"]
    assert "change: " in done.stdout
    assert "would be mapped" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--as", "segment"), 2),
        (("--source", "kafka:", "--as", "segment"), 2),
        (("--source", "x.jsonl", "--as", "segment", "--currency", "eur"), 2),
        (("--source", "x.jsonl", "--as", "amplitude", "--dry-run"), 1),
        (("--source", "x.jsonl", "--as", "segment", "--dry-run"), 1),
        (("--source", "x.csv", "--as", "segment", "--dry-run"), 1),
        (("--source", "kafka:theirs", "--as", "segment"), 1),
    ],
)
def test_wrong_usage_says_what_to_do(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    done = _run(tmp_path, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.startswith("livevalue: ")


def _read(bootstrap: str, topic: str) -> list[Any]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed")
    try:
        tps = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(tps)
        consumer.seek_to_beginning(*tps)
        ends, found = consumer.end_offsets(tps), []
        while any(consumer.position(tp) < ends[tp] for tp in tps):
            found += [record for got in consumer.poll(500).values() for record in got]
        return found
    finally:
        consumer.close()


def _deployed(stack: Stack, prefix: str) -> tuple[KafkaSettings, str, dict[str, str]]:
    """A deployment with its topics made, a vendor's topic of two partitions, the environment."""
    found = settings(stack.bootstrap, stack.redis_url, 10, prefix)
    topics.apply(found)
    kafka, theirs = found.kafka, f"{prefix}theirs"
    given_ = ("bootstrap", "browse", "purchase", "interaction", "scores", "dlq", "partitions")
    environment = {f"LIVEVALUE_KAFKA__{name.upper()}": str(getattr(kafka, name)) for name in given_}
    environment["LIVEVALUE_KAFKA__APP"] = prefix.rstrip(".")
    admin = KafkaAdminClient(bootstrap_servers=stack.bootstrap)
    admin.create_topics([NewTopic(theirs, 2, 1)], wait_for_metadata=True)
    admin.close()
    return kafka, theirs, environment


def test_a_topic_is_mapped_resumed_and_followed_until_sigterm(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    kafka, theirs, environment = _deployed(stack, topic_prefix)
    lines = _messages("segment")
    producer = KafkaProducer(bootstrap_servers=stack.bootstrap, acks="all")

    def send(raw: bytes, partition: int) -> None:
        producer.send(
            theirs, raw, key=b"vendor", partition=partition, headers=[("trace", b"t")]
        ).get(30)

    for at, raw in enumerate([*lines, b"no json"]):
        send(raw, at % 2)
    asked = ("--source", f"kafka:{theirs}", "--as", "segment")

    dry = _run(tmp_path, *asked, "--dry-run", "--json", "dry.json", **environment)
    assert dry.returncode == 0, dry.stderr
    assert all(_read(stack.bootstrap, topic) == [] for topic in (*kafka.sources, kafka.dlq))

    done = _run(tmp_path, *asked, "--until-end", "--json", "out.json", **environment)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "out.json").read_text())
    assert said["messages"] == len(lines) + 1
    assert json.loads((tmp_path / "dry.json").read_text())["messages"] == said["messages"]
    produced = [record for topic in kafka.sources for record in _read(stack.bootstrap, topic)]
    assert len(produced) == said["mapped"]
    for record in produced:
        event = json.loads(record.value)
        assert record.key == event["user_id"].encode()
        assert record.partition == partition(record.key, kafka.partitions)
        assert record.topic == getattr(kafka, event["type"])
    letters = _read(stack.bootstrap, kafka.dlq)
    assert len(letters) == said["parked"]
    (broken,) = (letter for letter in letters if letter.value == b"no json")
    headers = dict(broken.headers)
    assert broken.key == b"vendor"
    assert headers["trace"] == b"t"
    assert headers["__connect.errors.stage"] == b"MAP"
    assert headers["__connect.errors.topic"] == theirs.encode()
    assert headers["__connect.errors.exception.class.name"] == b"livevalue.not_json"

    again = _run(tmp_path, *asked, "--until-end", "--json", "again.json", **environment)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again.json").read_text())["messages"] == 0

    following = subprocess.Popen(
        [sys.executable, "-m", "livevalue.cli", "map", *asked, "--json", "last.json"],
        cwd=tmp_path,
        env=_environment(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        send(_track("Product Added", {"messageId": "late"}, product_id="p"), 0)
        ends = time.monotonic() + 60
        while time.monotonic() < ends and following.poll() is None:
            if any(b'"late"' in r.value for r in _read(stack.bootstrap, kafka.interaction)):
                break
            time.sleep(0.3)
        following.send_signal(signal.SIGTERM)
        _, complaints = following.communicate(timeout=60)
    finally:
        following.kill()
        producer.close()
    assert following.returncode == 0, complaints
    assert json.loads((tmp_path / "last.json").read_text())["mapped"] == 1


@pytest.mark.slow
def test_a_mapper_that_is_killed_leaves_no_message_out(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    kafka, theirs, environment = _deployed(stack, topic_prefix)
    many = 12_000
    producer = KafkaProducer(bootstrap_servers=stack.bootstrap, acks="all", linger_ms=20)
    for at in range(many):
        producer.send(theirs, _track("Product Added", {"messageId": str(at)}), partition=at % 2)
    producer.flush(60)
    producer.close()
    asked = ("--source", f"kafka:{theirs}", "--as", "segment", "--until-end")
    killed = subprocess.Popen(
        [sys.executable, "-m", "livevalue.cli", "map", *asked],
        cwd=tmp_path,
        env=_environment(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ends = time.monotonic() + 60
    while time.monotonic() < ends and not _read(stack.bootstrap, kafka.interaction):
        time.sleep(0.05)
    killed.kill()
    killed.wait(30)
    before = len(_read(stack.bootstrap, kafka.interaction))
    done = _run(tmp_path, *asked, "--json", "out.json", **environment)
    assert done.returncode == 0, done.stderr
    produced = [json.loads(r.value)["event_id"] for r in _read(stack.bootstrap, kafka.interaction)]
    assert set(produced) == {str(at) for at in range(many)}
    assert 0 < before < many
