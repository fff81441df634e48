"""Event logs in files, as the same batches that Kafka gives.

Files need not be sorted: rows are taken by log time (`log_time`, else event time), then by their
place. Sorting holds 128 MiB of rows and spills the rest to a temporary folder (streams.sorting),
so a log of any size is read in bounded memory; it costs some 10 µs a row.

- An event without `event_id` gets one: hash of its content + its number among equal rows, so
  that true repeats in a file count each, and the same file played into Kafka gives the same ids.
- A row without a user is skipped and counted `anonymous`, or rejected, by setting.
- `order_lines` adds the lines of one order_id of one user into one purchase: at the first line's
  time, under the order's id, with the lines as `items`.
- The source of an event is the topic that the settings give to its type.

`counts` says, after reading: `rows`, `anonymous`, `without_log_time`, `before_1980` (are these
seconds?), `order_lines` and `rejected_<reason>`; `rejections` holds the first 100 of these with
their places.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import msgspec

from featurestore import money, times
from featurestore.columns import EventBatch
from featurestore.events import TYPES, NotJson, loads
from featurestore.partitioner import partition as partition_of
from streams import logfiles
from streams.cells import FIELDS, CellError, Cells, time_ms
from streams.codec import Codec, merge
from streams.deadletter import Reason, Rejected
from streams.errors import LogFileError
from streams.settings import Settings
from streams.sorting import external_sort

_PLACES = 1 << 18  # keys whose partition is remembered
_KEPT = 100  # rejections whose places are kept
_ITEM = ("item_id", "category", "quantity", "price")
_LONGEST_ID = 128
_1980_MS = 315_532_800_000  # earlier events are most likely seconds taken for milliseconds


class _Head(msgspec.Struct):
    """What must be known of a JSON line before it can be put in order."""

    user_id: str | None = None
    event_time: str | int | None = None
    log_time: str | int | None = None
    event_id: str | None = None
    type: str | None = None


_HEAD = msgspec.json.Decoder(_Head)

# (log time, number of the row, place, source, key, value, whether it has an id)
_Event = tuple[int, int, str, int, bytes, bytes, bool]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One event of a file in the shape of a Kafka record."""

    key: bytes
    value: bytes
    offset: int  # place in log order, over all files
    timestamp: int  # log time
    source: int
    place: str  # file:line
    headers: tuple[tuple[str, bytes], ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that is no event."""

    place: str
    reason: Reason
    detail: str


class _Bad(Exception):
    """A row is no event; caught inside this module."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = detail.encode(errors="replace").decode()[:200]


class _Anonymous(Exception):
    """A row has no user."""


@dataclass(frozen=True, slots=True)
class _Counting:
    """A row that is no event is counted where the block ends, and reading goes on."""

    log: FileLog
    place: str

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> bool:
        if isinstance(error, _Bad):
            self.log._reject(self.place, error)
        elif isinstance(error, _Anonymous):
            self.log._anonymous(self.place)
        else:
            return False
        return True


class FileLog:
    """Event logs in files, read as one log. May be read several times; counts are of the last."""

    def __init__(
        self,
        paths: Sequence[str | Path],
        settings: Settings,
        columns: Mapping[str, str] | None = None,
        type: str | None = None,
        order_lines: bool = False,
        anonymous: Literal["skip", "reject"] | str = "skip",
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.settings = settings
        self._columns = dict(columns or {})
        if unknown := sorted(set(self._columns) - set(FIELDS)):
            raise LogFileError(
                f"--columns: no field {', '.join(unknown)}; write FIELD=COLUMN, for example"
                f" user_id=CustomerID; the fields are {', '.join(FIELDS)}"
            )
        if type is not None and type not in TYPES:
            raise LogFileError(f"--type {type}: must be {', '.join(TYPES)}")
        for path in self.paths:
            logfiles.format_of(path)
            if not path.is_file():
                raise LogFileError(f"{path}: no such file")
        self._cells = Cells(self._columns)
        self._user_column = self._columns.get("user_id", "user_id")
        self._type = type
        self._order_lines = order_lines
        self._reject_anonymous = anonymous == "reject"
        mixed = bool(settings.kafka.mixed)
        self._sources = dict.fromkeys(TYPES, 0) if mixed else {t: i for i, t in enumerate(TYPES)}
        self._limit = settings.kafka.max_record_bytes
        self.counts: Counter[str] = Counter()
        self.rejections: list[Rejection] = []

    # ---- what comes out ------------------------------------------------------------------

    def batches(self, partition_count: int, size: int) -> Iterator[tuple[int, EventBatch]]:
        """(partition, batch) of up to `size` events, each partition in log order."""
        kafka = self.settings.kafka.model_copy(update={"partitions": partition_count})
        codec = Codec(self.settings.model_copy(update={"kafka": kafka}))
        waiting: dict[int, list[FileRecord]] = defaultdict(list)
        places: dict[bytes, int] = {}
        for record in self.file_records():
            p = places.get(record.key, -1)
            if p < 0:
                p = partition_of(record.key, partition_count, kafka.partitioner)
                if len(places) >= _PLACES:
                    places.clear()
                places[record.key] = p
            waiting[p].append(record)
            if len(waiting[p]) >= size:
                yield p, self._decode(codec, p, waiting.pop(p))
        for p in sorted(waiting):
            yield p, self._decode(codec, p, waiting[p])

    def records(self) -> Iterator[tuple[str, bytes, bytes, int]]:
        """(topic, key, value, log time) of each event in log order, as `send` writes them.

        What a worker would reject for its content is counted and left out.
        """
        kafka, codec = self.settings.kafka, Codec(self.settings)
        for record in self.file_records():
            p = partition_of(record.key, kafka.partitions, kafka.partitioner)
            rejected = codec.decode(record.source, p, [record]).rejected
            if rejected:
                self._reject(record.place, rejected[0])
            else:
                yield kafka.sources[record.source], record.key, record.value, record.timestamp

    def _decode(self, codec: Codec, partition: int, records: list[FileRecord]) -> EventBatch:
        decoded = []
        for source in sorted({record.source for record in records}):
            own = [record for record in records if record.source == source]
            one = codec.decode(source, partition, own)
            if one.rejected:
                places = {record.offset: record.place for record in own}
                for rejected in one.rejected:
                    self._reject(places[rejected.offset], rejected)
            decoded.append(one)
        return merge(decoded)

    def _reject(self, place: str, why: Rejected | _Bad) -> None:
        self.counts[f"rejected_{why.reason}"] += 1
        if len(self.rejections) < _KEPT:
            self.rejections.append(Rejection(place, why.reason, why.detail))

    # ---- in log order, with ids ----------------------------------------------------------

    def file_records(self) -> Iterator[FileRecord]:
        """All events in log order; what is no event is counted and left out."""
        self.counts, self.rejections = Counter(), []
        equal: Counter[bytes] = Counter()
        latest: int | None = None
        events = self._orders() if self._order_lines else self._events()
        for offset, row in enumerate(external_sort(events)):
            log_ms, _, place, source, key, value, named = row
            if log_ms != latest:
                # Equal rows have equal log times: only rows of one millisecond are remembered.
                equal.clear()
                latest = log_ms
            if not named:
                content = blake2b(b"%d\0" % log_ms + value, digest_size=16).digest()
                equal[content] += 1
                value = _with(value, "event_id", f"{content.hex()}-{equal[content]}")
            yield FileRecord(key, value, offset, log_ms, source, place)

    def _events(self) -> Iterator[_Event]:
        """Events as rows have them, in the files' order."""
        for number, place, row in self._rows():
            with self._counting(place):
                if isinstance(row, bytes) and not self._columns:
                    yield self._line(number, place, row)
                else:
                    yield self._event(number, place, self._fields(row))

    def _rows(self) -> Iterator[tuple[int, str, bytes | logfiles.Row]]:
        """(number over all files, file:line, row) of all rows."""
        wanted = {self._columns.get(name, name) for name in FIELDS}
        needed = {*self._columns.values(), self._user_column}
        number = 0
        for path in self.paths:
            rows: Iterable[tuple[int, bytes | logfiles.Row]]
            if logfiles.format_of(path) == "jsonl":
                rows = logfiles.lines(path, self._limit)
            else:
                rows = enumerate(logfiles.table(path, wanted, needed), 1)
            for at, row in rows:
                yield number, f"{path.name}:{at}", row
                number += 1
        self.counts["rows"] = number

    def _counting(self, place: str) -> _Counting:
        """Count a row that is no event, and go on."""
        return _Counting(self, place)

    def _anonymous(self, place: str) -> None:
        if self._reject_anonymous:
            self._reject(place, _Bad(Reason.MISSING_FIELD, "user_id: no user"))
        else:
            self.counts["anonymous"] += 1

    def _line(self, number: int, place: str, line: bytes) -> _Event:
        """A line of JSONL goes on as it stands: the codec judges it as it would in Kafka."""
        if len(line) > self._limit:
            raise _Bad(Reason.TOO_LARGE, f"more than {self._limit} bytes")
        try:
            head = _HEAD.decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            head = _Head(**{name: self._object(line).get(name) for name in _Head.__struct_fields__})
        if head.user_id is None or head.user_id == "":
            raise _Anonymous
        if not isinstance(head.user_id, str):
            raise _Bad(Reason.INVALID_FIELD, "user_id: must be a string")
        if head.event_time is None:
            raise _Bad(Reason.MISSING_FIELD, "event_time: missing")
        said, event_time = head.event_time, 0
        try:
            if isinstance(said, str):
                event_time = times.parse(said)
            else:
                event_time = time_ms(said)
        except ValueError as error:
            raise _Bad(Reason.INVALID_FIELD, f"event_time: {error}") from None
        source = self._source(head.type)
        if head.type is None:
            line = _with(line, "type", self._type)
        log_ms = self._log_ms(head.log_time, event_time)
        return log_ms, number, place, source, head.user_id.encode(), line, head.event_id is not None

    def _object(self, line: bytes) -> dict[str, Any]:
        try:
            fields = loads(line)
        except NotJson as no:
            raise _Bad(Reason.NOT_JSON, str(no)) from None
        if not isinstance(fields, dict):
            raise _Bad(Reason.NOT_OBJECT, "a line must be a JSON object")
        return fields

    def _fields(self, row: bytes | logfiles.Row) -> dict[str, Any]:
        """A row's fields, with user, type and time made sure of."""
        if isinstance(row, bytes):
            row = self._object(row)
        if row.get(self._user_column) in (None, ""):
            raise _Anonymous
        try:
            fields = self._cells.fields_of(row)
        except CellError as error:
            raise _Bad(Reason.INVALID_FIELD, str(error)) from None
        except NotJson as error:
            raise _Bad(Reason.INVALID_FIELD, f"items or properties: {error}") from None
        if "user_id" not in fields:
            raise _Anonymous
        if "event_time" not in fields:
            raise _Bad(Reason.MISSING_FIELD, "event_time: missing")
        self._source(fields.setdefault("type", self._type))
        return fields

    def _event(self, number: int, place: str, fields: dict[str, Any]) -> _Event:
        """A mapped row's event as JSON."""
        log_ms = self._log_ms(fields.pop("log_time", None), fields["event_time"])
        for name in ("quantity", "price"):
            fields.pop(name, None)
        try:
            value = msgspec.json.encode(fields)
            key = fields["user_id"].encode()
        except UnicodeEncodeError:
            raise _Bad(Reason.NOT_JSON, "not UTF-8") from None
        source = self._source(fields["type"])
        return log_ms, number, place, source, key, value, "event_id" in fields

    def _source(self, said: object) -> int:
        name = self._type if said is None else said
        if name is None:
            raise _Bad(Reason.MISSING_FIELD, "type: say which with --type")
        if not isinstance(name, str) or name not in self._sources:
            raise _Bad(Reason.INVALID_FIELD, f"type: must be {', '.join(TYPES)}")
        return self._sources[name]

    def _log_ms(self, said: object, event_time: int) -> int:
        if event_time < _1980_MS:
            self.counts["before_1980"] += 1
        if said is None or said == "":
            self.counts["without_log_time"] += 1
            return event_time
        try:
            return time_ms(said)
        except ValueError as error:
            raise _Bad(Reason.INVALID_FIELD, f"log_time: {error}") from None

    # ---- lines of orders -----------------------------------------------------------------

    def _orders(self) -> Iterator[_Event]:
        """Purchases joined by user and order id, in no order; other events as they are."""
        for (_, order_id), group in itertools.groupby(
            external_sort(self._order_rows()), key=lambda row: row[:2]
        ):
            if not order_id:
                for _, _, number, place, packed in group:
                    with self._counting(place):
                        yield self._event(number, place, msgspec.json.decode(packed))
                continue
            lines = list(group)
            _, _, number, place, _ = lines[0]
            with self._counting(place):
                order = _joined([msgspec.json.decode(packed) for *_, packed in lines], self._limit)
                self.counts["order_lines"] += len(lines)
                yield self._event(number, place, order)

    def _order_rows(self) -> Iterator[tuple[str, str, int, str, bytes]]:
        """(user, order id or "", number, place, fields) of each row that is an event."""
        for number, place, row in self._rows():
            with self._counting(place):
                fields = self._fields(row)
                order_id = ""
                if fields["type"] == "purchase" and "order_id" in fields:
                    order_id = fields["order_id"]
                    if "amount" not in fields:
                        raise _Bad(Reason.MISSING_FIELD, "amount: or quantity and price")
                    try:
                        fields["micro"] = money.micro(fields["amount"])
                    except money.MoneyError as error:
                        raise _Bad(Reason.INVALID_FIELD, f"amount: {error}") from None
                try:
                    packed = msgspec.json.encode(fields)
                except UnicodeEncodeError:
                    raise _Bad(Reason.NOT_JSON, "not UTF-8") from None
                yield fields["user_id"], order_id, number, place, packed


def _joined(lines: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """One purchase of an order's lines."""
    first = min(lines, key=lambda line: int(line["event_time"]))
    currencies = {line.get("currency") for line in lines}
    if len(currencies) > 1:
        raise _Bad(Reason.INVALID_FIELD, "currency: differs between the lines of an order")
    total = sum(line["micro"] for line in lines)
    order_id: str = first["order_id"]
    order = {
        "type": "purchase",
        "event_id": order_id
        if len(order_id) <= _LONGEST_ID
        else blake2b(order_id.encode(), digest_size=16).hexdigest(),
        "user_id": first["user_id"],
        "event_time": first["event_time"],
        "amount": f"{money.decimal(total):f}",
        "order_id": order_id,
    }
    if None not in currencies:
        order["currency"] = first["currency"]
    arrived = [line["log_time"] for line in lines if "log_time" in line]
    if arrived:
        order["log_time"] = max(arrived)  # the order is known when its last line is
    items = [{name: line[name] for name in _ITEM if name in line} for line in lines]
    if any(items) and len(msgspec.json.encode(items)) < limit // 2:
        order["items"] = items
    return order


def _with(value: bytes, name: str, text: str | None) -> bytes:
    """A JSON object with one more field. It comes last, and so counts."""
    return value.rstrip()[:-1] + b"," + msgspec.json.encode({name: text})[1:]
