"""What goes out, as Kafka records: values, dead letters, and the record of what was published.

`scores` carries each user's last document, key = user id, null = erased. The dead-letter topic
carries a rejected record as it came in, raw, with Kafka Connect's header names beside its own
headers. `<scores>.published` (compacted, partition p for input partition p) says up to which
commit partition p has been published: it is written in the same transaction as the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.store import Identity, Letter
from streams.deadletter import RAW, TIMESTAMP
from streams.delivery import RawRecord, hashed

Headers = list[tuple[str, bytes]]

JSON_HEADERS: Headers = [("content-type", b"application/json")]
_CONNECT = "__connect.errors."
GONE = "gone"  # value of `livevalue.raw` where the log no longer holds the record
TRUNCATED = "truncated"


@dataclass(frozen=True, slots=True)
class Published:
    """How far partition p is published: identity of the last commit and where it ended."""

    identity: Identity
    positions: tuple[int, ...]
    log_id: str
    store: str = ""  # that served; "" where a record does not say
    scores_id: str = ""  # UUID of the topic that the values went to; "" where it does not say
    scores_end: int = 0  # how far its partition p has come at least, with the marker
    swept: int = 0  # seq of the last commit published of a sweep, or of a roll-back made good
    scores_last: str = ""  # seal of the last record on it; "" where it does not say
    scores_start: int = 0  # where its partition p began: deletion by age moves it, not compaction
    begun: int = 0  # seq up to which a roll-back made good was said in part, beyond `identity`

    def encode(self) -> bytes:
        """As the value of a record.

        >>> p = Published(Identity(3, "tok"), (5, 7), "a,b", "main", "c", 9, 2, "1f0c", 3, 4)
        >>> Published.decode(p.encode()) == p
        True
        """
        return json.dumps(
            {
                "v": 1,
                "seq": self.identity.seq,
                "writer": self.identity.writer,
                "positions": self.positions,
                "log_id": self.log_id,
                "store": self.store,
                "scores_id": self.scores_id,
                "scores_end": self.scores_end,
                "swept": self.swept,
                "scores_last": self.scores_last,
                "scores_start": self.scores_start,
                "begun": self.begun,
            },
            separators=(",", ":"),
        ).encode()

    @classmethod
    def decode(cls, value: bytes) -> Published:
        """From a record's value; ValueError where it is none of ours."""
        try:
            said = json.loads(value)
            return cls(
                Identity(int(said["seq"]), str(said["writer"])),
                tuple(int(p) for p in said["positions"]),
                str(said["log_id"]),
                str(said.get("store", "")),
                str(said.get("scores_id", "")),
                int(said.get("scores_end", 0)),
                int(said.get("swept", 0)),
                str(said.get("scores_last", "")),
                int(said.get("scores_start", 0)),
                int(said.get("begun", 0)),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of what was published: {value[:80]!r}") from error


def seal(user: bytes | None, document: bytes | None) -> str:
    """Fingerprint of a record on `scores`; None for a document is a tombstone.

    >>> seal(b"ada", b"{}") != seal(b"ada", None) != seal(b"ada", b"")
    True
    """
    return hashed(user, document).hexdigest()


def revision(document: bytes | None) -> int:
    """What a document on `scores` names as its revision; 0 where it names none.

    >>> [revision(raw) for raw in (b'{"revision": 7}', b'{"revision": 1e999}', b"{", None)]
    [7, 0, 0, 0]
    """
    try:
        said = json.loads(document or b"{}")
        return int(said["revision"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return 0


@dataclass(frozen=True, slots=True)
class Parked:
    """A dead letter on its way out: its name, why, and the record if the log still has it."""

    letter: Letter
    detail: str = ""
    record: RawRecord | None = None
    sought: bool = False  # the log was asked and no longer holds it

    def render(
        self, topic: str, partition: int, limit: int
    ) -> tuple[bytes | None, bytes | None, Headers]:
        """Key, value and headers for the dead-letter topic; at most about `limit` bytes.

        A value beyond the limit is cut and says so; of a record that is gone, only the name
        of its place is left.
        """
        key = value = None
        headers: Headers = []
        raw = "whole"
        if self.record is None:
            raw = GONE
        else:
            key, value = self.record.key, self.record.value
            headers += self.record.headers
            room = limit - sum(len(k) + len(v or b"") for k, v in headers)
            if room < 0:
                headers, room, raw = [], limit, TRUNCATED
            if key is not None and len(key) > room:
                key, raw = key[:room], TRUNCATED
            room -= len(key or b"")
            if value is not None and len(value) > room:
                value, raw = value[:room], TRUNCATED
        letter = self.letter
        said = {
            "topic": topic,
            "partition": str(partition),
            "offset": str(letter.offset),
            "stage": "VALUE_CONVERTER",
            "exception.class.name": f"livevalue.{letter.reason}",
            "exception.message": self.detail or letter.reason,
        }
        headers += [(_CONNECT + name, text.encode()[:512]) for name, text in said.items()]
        headers.append((RAW, raw.encode()))
        if self.record is not None:
            headers.append((TIMESTAMP, str(self.record.timestamp).encode()))
        return key, value, headers


def latest(updates: Sequence[dict[str, bytes]]) -> dict[str, bytes]:
    """Each user's last document, of commits in their order.

    >>> latest([{"a": b"1", "b": b"1"}, {"a": b"2"}])
    {'b': b'1', 'a': b'2'}
    """
    last: dict[str, bytes] = {}
    for documents in updates:
        for user, document in documents.items():
            last.pop(user, None)
            last[user] = document
    return last
