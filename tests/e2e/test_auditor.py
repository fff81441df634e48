"""The auditor sees what is done to a result that it found right."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from benchmarks.chaos import load
from benchmarks.chaos.auditor import read
from benchmarks.chaos.found import Audit
from benchmarks.chaos.runner import Scenario, chaos_settings
from featurestore.columns import NO_TIME
from featurestore.state import States
from livevalue.embedded import Stack
from streams.row import join, split
from streams.settings import Settings
from tests.e2e.deployment import Deployment

_DATABASE = 14  # other tests take 1 to 13


@pytest.fixture(scope="module")
def settled(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment that has folded 1,500 messages of the load, its worker gone."""
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{_DATABASE}"
    settings = _own_topics(chaos_settings(stack.bootstrap, url, Scenario(partitions=2)))
    with Deployment(settings, tmp_path_factory.mktemp("audited")) as deployment:
        worker = deployment.start()
        for until in (500, 1_000, 1_500):  # so that users are published more than once
            feeder = load.Feeder(settings.kafka, 60, until, 1e6, lambda sent: sent >= 500)
            feeder.start()
            feeder.join(60)
            deployment.settle()
        assert worker.stop() == 0
        yield deployment


def _own_topics(settings: Settings) -> Settings:
    names = ("app", "browse", "purchase", "interaction", "scores", "dlq")
    update = {name: f"audited.{getattr(settings.kafka, name)}" for name in names}
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update=update)})


def test_the_auditor_finds_nothing_where_nothing_is_wrong(settled: Deployment) -> None:
    found = settled.audit([])
    assert found.clean, found
    assert found.records > found.events > 1_000 and 55 < found.users <= 60 and found.letters > 20
    assert found.erased > 15


def test_the_auditor_counts_an_event_dropped_from_a_state(settled: Deployment) -> None:
    key, row = _a_state(settled)
    state, score = split(row)
    states = States.decode(["x"], [state])
    states.head["counts"][0, 0] -= 1
    _doctored(settled, key, join(states.encode()[0], score), row, {"lost": 1})


def test_the_auditor_counts_an_event_that_a_state_holds_twice(settled: Deployment) -> None:
    key, row = _a_state(settled)
    state, score = split(row)
    states = States.decode(["x"], [state])
    states.head["counts"][0, 1] += 1
    _doctored(settled, key, join(states.encode()[0], score), row, {"applied_twice": 1})


def test_the_auditor_sees_one_event_lost_where_another_counts_twice(settled: Deployment) -> None:
    key, row = _a_state(settled)
    state, score = split(row)
    states = States.decode(["x"], [state])
    states.head["id_lo"][0] += 1  # the sum over other events, and as many
    wanted = {"lost": 1, "applied_twice": 1}
    _doctored(settled, key, join(states.encode()[0], score), row, wanted)


def test_the_auditor_sees_an_order_that_the_log_does_not_have(settled: Deployment) -> None:
    key, row = _a_state(settled)
    state, score = split(row)
    states = States.decode(["x"], [state])
    assert states.head["last_ms"][0] != NO_TIME
    states.head["event_gap_ms"] += 1
    _doctored(settled, key, join(states.encode()[0], score), row, {"users_wrong": 1})


def test_the_auditor_counts_a_document_that_is_not_the_last_one_sent(settled: Deployment) -> None:
    key = next(iter(settled.redis.scan_iter("lv:{0}:v:*")))
    row: Any = settled.redis.get(key)
    _doctored(settled, key, row.replace(b'"v":1', b'"v":2'), row, {"outputs_missing": 1})


def test_the_auditor_sees_what_an_erasure_has_left_or_has_not_said(
    settled: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, row, user = _forgotten(settled)
    p = key.partition(b"{")[2].partition(b"}")[0]
    document, ranks = b"lv:{%b}:v:%b" % (p, user), b"lv:{%b}:top" % p
    state, score = split(row)
    states = States.decode(["x"], [state])
    states.settled["counts"][0, 0] += 1
    settled.redis.set(document, b"{}")
    wanted = {"applied_twice": 1, "users_wrong": 1}
    _doctored(settled, key, join(states.encode()[0], score), row, wanted)
    settled.redis.delete(document)
    states = States.decode(["x"], [state])
    assert states.erased_ms[0] > load.START_MS
    states.erased_ms -= 1  # another erasure's marker
    settled.redis.zadd(ranks, {user: 1.0})
    _doctored(settled, key, join(states.encode()[0], score), row, {"users_wrong": 2})
    settled.redis.zrem(ranks, user)
    dates = b"lv:main:{%b}:due" % p
    settled.redis.zadd(dates, {user: 1.0})
    assert _wrong(settled.audit([])) == {"users_wrong": 1}
    settled.redis.zrem(dates, user)

    scores = settled.read(settled.settings.kafka.scores)
    untold = [r for r in scores if not (r.key == user and r.value is None)]
    assert len(untold) < len(scores)
    # And whoever comes back must not be compared with what was.
    last = {r.key: i for i, r in enumerate(untold) if r.value}
    sent = {(r.key, json.loads(r.value)["revision"]) for r in untold if r.value}
    at = next(
        i
        for user, i in last.items()
        if (before := json.loads(untold[i].value)["previous"])
        and (user, before["revision"]) in sent
    )
    untold.insert(at, untold[at]._replace(value=None))
    one = _audit_of(settled, monkeypatch, {settled.settings.kafka.scores: untold})
    assert _wrong(one) == {"outputs_missing": 1, "users_wrong": 1}
    assert {e[0] for e in one.examples} == {"no tombstone", "previous from before an erasure"}


def test_an_erasure_has_taken_what_was_made_before_it_and_nothing_else(
    settled: Deployment,
) -> None:
    kafka = settled.settings.kafka
    records = [r for topic in kafka.sources for r in settled.read(topic)]
    erases = [r for r in records if r.value is None]
    # On every source under one timestamp.
    assert set(Counter((r.key, r.timestamp) for r in erases).values()) == {3}
    kinds = [
        (event["event_id"], r)
        for r in records
        if r.value and (event := _event(r.value)) and event["event_id"][:2] in ("ah", "be")
    ]
    for name, r in kinds:
        own = [e for e in erases if e.key == r.key and abs(e.timestamp - r.timestamp) <= 1]
        (here,) = [e for e in own if e.topic == r.topic]
        ahead = name.startswith("ahead")
        assert (r.offset < here.offset) is ahead
        assert (r.timestamp > here.timestamp) is ahead
    assert len({name[0] for name, _ in kinds}) == 2


def test_the_auditor_counts_whom_redis_holds_or_scores_names_and_the_log_does_not(
    settled: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, client = settled.settings.kafka.scores, settled.redis
    records = settled.read(scores)
    first = next(r for r in records if r.value and json.loads(r.value)["previous"] is None)
    moved = next(iter(client.scan_iter("lv:{1}:v:*"))).rpartition(b":")[2]
    rows = {
        b"lv:{0}:v:{1}:v:a:document": b"of nobody",
        b"lv:{0}:v:" + moved: b"of a user of partition 1",
        b"lv:{7}:v:far": b"of a partition that is none",
        b"lv:main:{1}:s:a state": b"",
        # And what nobody reads: of a store that does not serve.
        b"lv:other:{1}:s:elsewhere": b"",
    }
    ranks = {b"lv:{0}:top": b"a rank", b"lv:main:{1}:due": b"a date", b"lv:other:{1}:due": b"no"}
    client.mset(rows)
    for key, user in ranks.items():
        client.zadd(key, {user: 1.0})
    told = [first._replace(key=b"said"), first._replace(key=b"unsaid")]
    told.append(told[1]._replace(value=None))
    try:
        found = _audit_of(settled, monkeypatch, {scores: [*records, *told]})
    finally:
        client.delete(*rows)
        for key, user in ranks.items():
            client.zrem(key, user)
    assert set(found.examples) == {
        ("stranger", "{1}:v:a:document", 0, "v"),
        ("stranger", moved.decode(), 0, "v"),
        ("stranger", "far", 7, "v"),
        ("stranger", "a state", 1, "s"),
        ("stranger", "a rank", 0, "top"),
        ("stranger", "a date", 1, "due"),
        ("stranger", "said", first.partition, "scores"),
    }
    assert _wrong(found) == {"strangers": 7}


def test_the_auditor_counts_ranks_and_dates_that_are_not_the_documents(
    settled: Deployment,
) -> None:
    """Of users who live: gone, or off by a little; each is put back."""
    day_ms, seen = 86_400_000, set[str]()
    for name in (b"lv:{%b}:top", b"lv:main:{%b}:due"):
        key = name % b"0"
        held: list[tuple[bytes, float]] = settled.redis.zrange(key, 0, -1, withscores=True)  # type: ignore[assignment]
        assert len(held) > 10
        user, was = held[0]
        settled.redis.zrem(key, user)
        one = settled.audit([])
        assert _wrong(one) == {"users_wrong": 1} and one.examples[0][1] == user.decode()
        off = was * 1.001 if was < 1e9 else was + 400 * day_ms
        for wrong in (off, 0.0):
            settled.redis.zadd(key, {user: wrong})
            one = settled.audit([])
            assert _wrong(one) == {"users_wrong": 1}, wrong
            seen.add(one.examples[0][0])
        settled.redis.delete(key)
        assert settled.audit([]).users_wrong == len(held)
        settled.redis.zadd(key, dict(held))
    assert seen == {"rank", "due date"}
    assert settled.audit([]).clean


def test_the_auditor_counts_an_output_sent_twice_a_hole_and_letters_amiss(
    settled: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = settled.settings.kafka
    scores, letters = settled.read(kafka.scores), settled.read(kafka.dlq)
    revisions = Counter(r.key for r in scores)
    often = next(key for key, n in revisions.items() if n > 2)
    own = [r for r in scores if r.key == often]

    def found(which: str, records: list[Any]) -> Audit:
        return _audit_of(settled, monkeypatch, {which: records})

    one = found(kafka.scores, [*scores, own[-1]])
    assert _wrong(one) == {"outputs_twice": 1}
    # The one before the last is named as `previous` by the last.
    assert (
        json.loads(own[-1].value)["previous"]["revision"] == json.loads(own[-2].value)["revision"]
    )
    one = found(kafka.scores, [r for r in scores if r is not own[-2]])
    assert _wrong(one) == {"outputs_missing": 1} and one.examples[0][0] == "hole"
    assert _wrong(found(kafka.dlq, letters[1:])) == {"letters_missing": 1}
    assert _wrong(found(kafka.dlq, [*letters, letters[0]])) == {"letters_twice": 1}
    other = letters[0]._replace(value=b"other bytes")
    assert _wrong(found(kafka.dlq, [other, *letters[1:]])) == {"letters_wrong": 1}
    elsewhere = _headed(letters[0], "__connect.errors.offset", b"1000000000")
    assert _wrong(found(kafka.dlq, [*letters, elsewhere])) == {"letters_wrong": 1}
    for header, said in (("__connect.errors.exception.class.name", b"whim"), ("raw", b"cut")):
        name = header if header.startswith("__") else f"livevalue.{header}"
        doctored = _headed(letters[0], name, said)
        assert _wrong(found(kafka.dlq, [doctored, *letters[1:]])) == {"letters_wrong": 1}
    # The last commit of a transaction is never left out of it.
    ends = {(r.partition, json.loads(r.value)["seq"]) for r in settled.read(kafka.published)}
    documents = [(r, json.loads(r.value)) for r in scores if r.value is not None]
    followed = {(r.key, (d["previous"] or {}).get("revision")) for r, d in documents}
    last = next(
        r
        for r, d in documents
        if (r.partition, d["revision"]) in ends and (r.key, d["revision"]) in followed
    )
    one = found(kafka.scores, [r for r in scores if r is not last])
    assert _wrong(one) == {"outputs_missing": 1} and one.examples[0][0] == "hole"
    # A transaction explains what it left out; where none is known, nothing does.
    told = {kafka.scores: [r for r in scores if r is not last], kafka.published: []}
    one = _audit_of(settled, monkeypatch, told)  # and what transactions had left out, if any
    assert set(_wrong(one)) == {"outputs_missing"} and {e[0] for e in one.examples} == {"hole"}


def test_the_auditor_counts_a_document_that_names_none_before_it_though_there_was_one(
    settled: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = settled.settings.kafka.scores
    scores = settled.read(name)
    erased = {r.key for t in settled.settings.kafka.sources for r in settled.read(t) if not r.value}
    sent = Counter(r.key for r in scores)
    often = next(key for key, n in sent.items() if n > 2 and key not in erased)
    first, *_, before, _ = (i for i, r in enumerate(scores) if r.key == often)
    document = json.loads(scores[before].value) | {"previous": None}
    forgetful = scores[before]._replace(value=json.dumps(document).encode())
    told = {name: [*scores[:before], forgetful, *scores[before + 1 :]]}
    p, begun = scores[first].partition, json.loads(scores[first].value)["revision"]
    for undone_to, wrong in (
        ([], {"outputs_missing": 1}),
        ([{p: begun}], {"outputs_missing": 1}),  # which left the first
        ([{p: begun}, {p: begun - 1}], {}),
        (None, {}),
    ):
        one = _audit_of(settled, monkeypatch, told, undone_to)
        assert _wrong(one) == wrong, undone_to
    # Who was erased begins again.
    kept = [(r, json.loads(r.value)) for r in scores if r.value]
    assert any(r.key in erased and not d["previous"] for r, d in kept)


def test_letters_that_an_erasure_excuses_may_be_there_once_and_as_they_were(
    settled: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An erasure after all else of a user who has a letter: his batch may have ended before it."""
    kafka = settled.settings.kafka
    logs = {topic: settled.read(topic) for topic in kafka.sources}
    letters = settled.read(kafka.dlq)
    place = "__connect.errors."

    def at(letter: Any) -> tuple[Any, ...]:
        said = {name: value.decode() for name, value in letter.headers}
        return said[f"{place}topic"], *(int(said[place + k]) for k in ("partition", "offset"))

    def reason(letter: Any) -> str:
        return str(dict(letter.headers)[f"{place}exception.class.name"].decode())

    parked = next(r for r in letters if reason(r) == "livevalue.late")
    topic, p, offset = at(parked)
    log = [r for r in logs[topic] if r.partition == p]
    user = next(r for r in log if r.offset == offset).key
    latest = max(r.timestamp for r in log)
    erase = log[-1]._replace(key=user, value=None, timestamp=latest, offset=log[-1].offset + 1)
    folded = next(
        r
        for r in log
        if r.key == user and r.value and (topic, p, r.offset) not in {*map(at, letters)}
    )

    def found(records: list[Any]) -> dict[str, int]:
        one = _audit_of(settled, monkeypatch, {topic: [*logs[topic], erase], kafka.dlq: records})
        assert one.letters < due
        return {name: n for name, n in _wrong(one).items() if name.startswith("letters")}

    due = settled.audit([]).letters
    others = [r for r in letters if r is not parked]
    assert found(letters) == found(others) == {}
    whim = _headed(parked, f"{place}exception.class.name", b"livevalue.conflict")
    for wrong in (whim, _headed(parked, "livevalue.raw", b"cut"), parked._replace(value=b"other")):
        assert found([*others, wrong]) == {"letters_wrong": 1}
    assert found([*letters, parked]) == {"letters_twice": 1}
    elsewhere = _headed(parked, f"{place}offset", str(folded.offset).encode())
    assert found([*letters, elsewhere]) == {"letters_wrong": 1}


def test_the_auditor_counts_a_revision_that_goes_back_and_a_document_of_another_history(
    settled: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = settled.settings.kafka.scores
    scores = settled.read(name)
    often = next(key for key, n in Counter(r.key for r in scores).items() if n > 2)
    *_, before, last = (i for i, r in enumerate(scores) if r.key == often)

    swapped = list(scores)
    swapped[before], swapped[last] = scores[last], scores[before]
    one = _audit_of(settled, monkeypatch, {name: swapped})
    assert _wrong(one) == {"backwards": 1, "outputs_missing": 1}

    document = json.loads(scores[last].value)
    document["history"]["orders"] += 1
    told = json.dumps(document).encode()
    key = b"lv:{%d}:v:%b" % (scores[last].partition, often)
    kept: Any = settled.redis.get(key)
    settled.redis.set(key, told)
    try:
        doctored = [*scores[:last], scores[last]._replace(value=told), *scores[last + 1 :]]
        one = _audit_of(settled, monkeypatch, {name: doctored})
    finally:
        settled.redis.set(key, kept)
    assert _wrong(one) == {"outputs_missing": 1} and one.examples[0][0] == "history"


def _headed(letter: Any, name: str, value: bytes) -> Any:
    """A letter with another value under one of its headers."""
    assert name in dict(letter.headers)
    return letter._replace(headers=[(n, value if n == name else v) for n, v in letter.headers])


def _audit_of(
    settled: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, list[Any]],
    undone_to: Sequence[Mapping[int, int]] | None = (),
) -> Audit:
    """The audit, were these the records of these topics."""

    def doctored(kafka: Any, topic: str) -> list[Any]:
        return told[topic] if topic in told else read(kafka, topic)

    with monkeypatch.context() as patched:
        patched.setattr("benchmarks.chaos.auditor.read", doctored)
        return settled.audit(undone_to)


def _event(value: bytes) -> dict[str, Any]:
    """An event, or an empty one of what is none."""
    try:
        said = json.loads(value)
    except ValueError:
        return {}
    return said if isinstance(said, dict) and "event_id" in said else {}


def _forgotten(settled: Deployment) -> tuple[bytes, bytes, bytes]:
    """Key, row and name of a user who was erased and did nothing since."""
    for key in settled.redis.scan_iter("lv:main:*:s:*"):
        row: Any = settled.redis.get(key)
        if States.decode(["x"], [split(row)[0]]).head["last_ms"][0] == NO_TIME:
            return key, row, key.rpartition(b":")[2]
    raise AssertionError("everybody came back")


def _a_state(settled: Deployment) -> tuple[bytes, bytes]:
    """A user's key and row, of one who browsed and has a tail: its head is stored by itself."""
    for key in settled.redis.scan_iter("lv:main:{0}:s:*"):
        row: Any = settled.redis.get(key)
        states = States.decode(["x"], [split(row)[0]])
        if states.has_tail()[0] and states.head["counts"][0, 0]:
            return key, row
    raise AssertionError("nobody browsed and has a tail")


def _doctored(
    settled: Deployment, key: bytes, wrong: bytes, right: bytes, wanted: dict[str, int]
) -> None:
    settled.redis.set(key, wrong)
    try:
        assert _wrong(settled.audit([])) == wanted
    finally:
        settled.redis.set(key, right)


def _wrong(found: Audit) -> dict[str, int]:
    return {name: count for name, count in found.faults().items() if count}
