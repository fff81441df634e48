"""What goes out: dead letters with raw bytes as far as the topic holds them, and where from."""

from __future__ import annotations

from featurestore.store import Identity, Letter
from streams.delivery import Simple
from streams.emit import Parked, Published, latest

LETTER = Letter(1, 41, "not_json")


def test_a_dead_letter_carries_the_record_as_it_came_and_says_where_from() -> None:
    record = Simple(41, b"ada", b"{", 5, [("trace", b"7"), ("empty", b"")])
    key, value, headers = Parked(LETTER, "no object", record).render("events", 3, 1000)
    assert (key, value) == (b"ada", b"{")
    assert dict(headers) == {
        "trace": b"7",
        "empty": b"",
        "__connect.errors.topic": b"events",
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"41",
        "__connect.errors.stage": b"VALUE_CONVERTER",
        "__connect.errors.exception.class.name": b"livevalue.not_json",
        "__connect.errors.exception.message": b"no object",
        "livevalue.raw": b"whole",
        "livevalue.timestamp": b"5",
    }


def test_a_record_beyond_the_limit_is_cut_and_says_so() -> None:
    record = Simple(41, b"k" * 10, b"v" * 5000, 5, [("h", b"x" * 10)])
    key, value, headers = Parked(LETTER, "", record).render("events", 3, 1000)
    assert key == b"k" * 10 and value == b"v" * (1000 - 10 - 11)
    assert dict(headers)["livevalue.raw"] == b"truncated"
    long = Simple(41, b"k" * 2000, b"v", 5, [("h", b"x" * 2000)])
    key, value, headers = Parked(LETTER, "", long).render("events", 3, 1000)
    assert (key, value) == (b"k" * 1000, b"")
    assert "h" not in dict(headers)


def test_a_record_that_is_gone_leaves_its_place() -> None:
    key, value, headers = Parked(LETTER, sought=True).render("events", 3, 1000)
    assert (key, value) == (None, None)
    assert dict(headers)["livevalue.raw"] == b"gone"
    assert dict(headers)["__connect.errors.offset"] == b"41"
    assert "livevalue.timestamp" not in dict(headers)


def test_of_several_commits_each_users_last_document_goes_out_once() -> None:
    assert latest([{"a": b"1", "b": b"1"}, {"c": b"2"}, {"a": b""}]) == {
        "b": b"1",
        "c": b"2",
        "a": b"",
    }


def test_what_was_published_reads_back_as_it_was_written() -> None:
    said = Published(Identity(7, "token"), (3, 0, 9), "id1,id2,id3")
    assert Published.decode(said.encode()) == said
