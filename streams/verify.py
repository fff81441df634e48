"""Verify: does the live store hold what the log says?

For each page of users, read atomically with the watermark they belong to, the log is replayed up to
exactly that watermark into a scratch store, and user by user the two are compared: exact fields
(identities, counts, money) bit by bit, features, carries and documents within the tolerances that
`TOLERANCES` states; rank and due date by what the document says (streams/standing.py). Users of
whom only the log knows are different too, and so is a document, a rank or a date of somebody of
whom neither knows. The store may move meanwhile: every page has its own watermark, and
the replay only ever goes forward; a document that was written after its user's state was read is
looked at again. While a sweep is pending documents are those of the store that served before:
states are compared, and such users are counted apart.

The exceptions of law 4 are named, not hidden (`EXCEPTIONS`): users of whom something depends on how
far one topic was read ahead of another. The state says of each whether it can be one. Excused is
what the order of reading may do and no more: a document that is missing, of another revision, of
an erased user, or that does not follow from the live state itself is a difference all the same.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.backends.memory import MemoryStore
from featurestore.columns import NO_TIME
from featurestore.digest import exact_fields
from featurestore.state import States, history
from featurestore.store import FeatureStore, Listed
from featurestore.vector import encode
from scoring.documents import Cause
from scoring.generation import Generation
from scoring.scorer import Scorer
from streams.codec import Codec
from streams.kafkalog import KafkaLog
from streams.pipeline import Pipeline
from streams.replay import Replayed, kafka_steps, replay
from streams.row import split
from streams.settings import Settings
from streams.standing import amiss
from streams.sweep import pending

_PAGE = 1000
_LOOKS = 5  # at a document that is newer than the state read before it
_SHOWN = 20
# Relative, and absolute near zero.
TOLERANCES = {
    "features": (1e-4, 1e-5),  # the fold is the same code; float32 sums differ in their order
    "carry": (0.0, 1e-4),  # batch sizes round float32 products differently
    "document": (1e-3, 1e-6),  # documents carry 5 significant digits
}
EXCEPTIONS = {
    "tail_cap": "floats of users beyond the tail cap, of whom an event came behind a settled one",
    "idle_source": "floats of users of whom an idle source brought an event behind a settled one",
    "compacted": "users of whom a compacted topic no longer holds all that the store knows",
    "erased_amid_settled": "erased users of whom later records had been settled before (ADR 7)",
}
# What names the commit and not the value.
_OF_COMMIT = ("revision", "previous", "cause")


@dataclass(slots=True)
class Verified:
    """What `livevalue verify` found."""

    users: int = 0
    different: int = 0
    unswept: int = 0  # of them, whose document was not compared: a sweep is to publish it again
    excepted: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(EXCEPTIONS, 0)))
    first_differences: list[dict[str, Any]] = field(default_factory=list)

    def add(self, partition: int, user: str, what: Sequence[str]) -> None:
        """Count one user's differences; the first 20 are kept in words."""
        self.users += 1
        if not what:
            return
        self.different += 1
        if len(self.first_differences) < _SHOWN:
            self.first_differences.append(
                {"partition": partition, "user_id": user, "differs": list(what)}
            )


async def verify(
    settings: Settings,
    store: FeatureStore,
    generation: Generation,
    partitions: Sequence[int],
    *,
    sample: int | None = None,
    scratch: Pipeline | None = None,
    into: Verified | None = None,
    progress: Callable[[int], None] | None = None,
    compacted: Sequence[str] = (),
) -> Verified:
    """Replay the log up to each page's watermark and compare.

    sample: at most this many users a partition. scratch: into a memory store that holds the
    store's base of files already, where it has one. into: what was found so far. compacted: topics
    that may lack what the store was folded from.
    """
    found = into or Verified()
    scorer = Scorer(generation, settings.model, settings.features)
    async with KafkaLog(settings.kafka) as log:
        for partition in partitions:
            mirror = scratch or Pipeline(MemoryStore("verify"), scorer, settings, publishes=False)
            one = _Partition(settings, store, mirror, partition, log, found, compacted)
            await one.begin()
            async for page in one.pages(sample):
                await one.compare(page)
                if progress:
                    progress(found.users)
            if sample is None:
                await one.compare(await one.unknown_to_store())
                async for page in one.documents_of_others():
                    await one.compare(page)
    return found


class _Partition:
    """One partition of the live store beside its mirror."""

    def __init__(
        self,
        settings: Settings,
        store: FeatureStore,
        mirror: Pipeline,
        partition: int,
        log: KafkaLog,
        found: Verified,
        compacted: Sequence[str],
    ) -> None:
        self._settings = settings
        self._compacted = [s for s, name in enumerate(settings.kafka.sources) if name in compacted]
        self._store = store
        self._mirror = mirror
        self._partition = partition
        self._log = log
        self._found = found
        self._codec = Codec(settings)
        self._done = Replayed()
        self._seen: set[str] = set()

    async def begin(self) -> None:
        """Start from what the mirror holds: nothing, or the base."""
        mark = (await self._mirror.store.load(self._partition, [])).watermark
        if mark is not None:
            self._done.watermarks[self._partition] = mark

    async def pages(self, sample: int | None) -> AsyncIterator[list[str]]:
        """Users of the live store, each once."""
        cursor, left = "", sample
        while left is None or left > 0:
            page, cursor = await self._store.scan(self._partition, cursor, _PAGE)
            page = [user for user in dict.fromkeys(page) if user not in self._seen][:left]
            self._seen.update(page)
            left = None if left is None else left - len(page)
            yield page
            if not cursor:
                return

    async def unknown_to_store(self) -> list[str]:
        """Users of the mirror that the walk through the live store did not meet."""
        users, cursor = [], ""
        while True:
            page, cursor = await self._mirror.store.scan(self._partition, cursor, _PAGE)
            users += [user for user in page if user not in self._seen]
            if not cursor:
                self._seen.update(users)
                return users

    async def documents_of_others(self) -> AsyncIterator[list[str]]:
        """Users with a document whom neither walk has met: new, or of nothing that is known."""
        cursor = ""
        while True:
            page, cursor = await self._store.scan_documents(self._partition, cursor, _PAGE)
            page = [user for user in dict.fromkeys(page) if user not in self._seen]
            self._seen.update(page)
            if page:
                yield page
            if not cursor:
                return

    async def compare(self, users: Sequence[str]) -> None:
        """Compare these users; those whose document moves on meanwhile are read again."""
        for look in range(_LOOKS):
            users = await self._compare(users, last=look == _LOOKS - 1)
            if not users:
                return

    async def _compare(self, users: Sequence[str], *, last: bool) -> list[str]:
        """-> users whose document is newer than their state, unless this is the last look."""
        p = self._partition
        live = await self._store.load(p, users)
        listed = await self._store.listed(p, users)
        if live.watermark is None:
            return []
        before = self._done.watermarks.get(p)
        steps = kafka_steps(self._log, self._codec, p, before, live.watermark.positions)
        await replay(steps, self._mirror, into=self._done)
        unswept = pending(live.watermark)
        mirror = await self._mirror.store.load(p, users)
        # Holes of markers look the same, so that upstream transactions excuse as much.
        lacking = any(self._log.holes[s, p] for s in self._compacted)
        both, alone = [], set[str]()
        for user, a, b, shown in zip(users, live.states, mirror.states, listed, strict=True):
            if a is not None and b is not None:
                both.append((user, split(a), split(b), shown))
            elif a is not None and lacking:
                # Nothing to compare with but itself.
                alone.add(user)
                both.append((user, split(a), split(a), shown))
            elif a is not None or b is not None:
                self._found.add(p, user, ["only in the store" if a else "only in the log"])
            elif shown != Listed() and not unswept:
                self._found.add(p, user, ["a document of nobody"])
        if not both:
            return []
        pages = _Pages(self._settings, self._mirror, self._found, p, lacking=lacking, alone=alone)
        return pages.compare(both, last=last, unswept=unswept)


_Row = tuple[str, tuple[bytes, bytes], tuple[bytes, bytes], Listed]


class _Pages:
    """Compares users whom both sides know.

    lacking: the log no longer holds all that it held. alone: users whom only the store knows, for
    that reason.
    """

    def __init__(
        self,
        settings: Settings,
        mirror: Pipeline,
        found: Verified,
        partition: int,
        *,
        lacking: bool = False,
        alone: Container[str] = (),
    ) -> None:
        self._settings = settings
        self._mirror = mirror
        self._scorer = mirror.scorer
        self._found = found
        self._partition = partition
        self._lacking = lacking
        self._alone = alone

    def compare(self, rows: Sequence[_Row], *, last: bool, unswept: bool = False) -> list[str]:
        """-> users to be looked at again.

        unswept: documents are still those of the store that served before.
        """
        self._found.unswept += len(rows) if unswept else 0
        names = [name for name, *_ in rows]
        ours = States.decode(names, [a[0] for _, a, _, _ in rows])
        theirs = States.decode(names, [b[0] for _, _, b, _ in rows])
        _, our_head, said = self._scorer.unpack([a[1] for _, a, _, _ in rows])
        _, their_head, _ = self._scorer.unpack([b[1] for _, _, b, _ in rows])
        exact = _exact(ours, theirs)
        fewer = _fewer(ours, theirs)
        carry = ~_alike(our_head, their_head, "carry")
        past = history(theirs)
        as_of = np.maximum(np.maximum(past["last_ms"], said["as_of_ms"]), 0)
        features = ~self._same_features(ours, theirs, as_of)
        expected = self._documents(theirs, their_head, as_of)
        again = []
        for i, name in enumerate(names):
            listed, revision = Listed(), 0
            if not unswept:
                listed, revision = rows[i][3], int(said["revision"][i])
            what = exact[i] + ["only in the store"] * (name in self._alone)
            floats = ["features"] * bool(features[i]) + ["carry"] * bool(carry[i])
            shown = json.loads(listed.document) if listed.document else None
            if past["last_ms"][i] == NO_TIME:  # erased
                newer = shown is not None
            else:
                newer = revision > 0 and (shown is None or shown["revision"] != revision)
            if newer and not last:
                again.append(name)
                continue
            if newer:
                what.append("document")
            elif shown is not None and revision > 0:
                wrong = list(_differences(shown, expected[i], ""))
                floats += [where for where in wrong if not where.startswith(".history")]
                what += [where for where in wrong if where.startswith(".history")]
            name_of = _exception(ours.marks[i], theirs.marks[i], exact=bool(what))
            if name_of is None and self._lacking and fewer[i]:
                name_of = "compacted"
            if what + floats and name_of is not None and not newer:
                # Whatever order made the state, the document follows from it.
                wrong = self._not_its_own(shown, revision, ours, our_head, said, i)
                self._found.excepted[name_of] += not wrong
                what, floats = wrong, []
            if not newer:
                what += amiss(listed, self._settings.model.republish_share)
            self._found.add(self._partition, name, what + floats)
        return again

    def _not_its_own(
        self,
        shown: dict[str, Any] | None,
        revision: int,
        states: States,
        head: npt.NDArray[np.float32],
        said: npt.NDArray[np.void],
        i: int,
    ) -> list[str]:
        """Where the document of user `i` differs from what the live state itself must say."""
        if shown is None or not revision:
            return []
        at = np.array([i])
        own = states.select(at)
        as_of = np.maximum(np.maximum(history(own)["last_ms"], said["as_of_ms"][at]), 0)
        return list(_differences(shown, self._documents(own, head[at], as_of)[0], ""))

    def _documents(
        self, states: States, head: npt.NDArray[np.float32], as_of: npt.NDArray[np.int64]
    ) -> list[dict[str, Any]]:
        """What the documents must say, by the replayed states."""
        n = len(states.users)
        prediction = self._scorer.rescore(states, head, as_of)
        built = self._mirror.documents.build(
            states.users,
            1,
            as_of,
            prediction,
            history(states),
            np.zeros(n, np.int64),
            np.zeros((n, prediction.expected.shape[2])),
            [Cause("silence", None, None, None, None)] * n,
        )
        return [json.loads(document) for document in built]

    def _same_features(
        self, ours: States, theirs: States, as_of: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        log_start = self._scorer.generation.manifest.log_start_ms
        settings = self._settings.features
        a, b = (encode(side, as_of, log_start, settings) for side in (ours, theirs))
        return _alike(a, b, "features")


def _exception(ours: np.void, theirs: np.void, *, exact: bool) -> str | None:
    """Which of EXCEPTIONS may account for a difference, by MARKS of both sides; None: none.

    exact: fields differ that only an erasure may move.
    """
    if ours["split"] or theirs["split"]:
        return "erased_amid_settled"
    if exact or not (ours["overtaken"] or theirs["overtaken"]):
        return None
    return "tail_cap" if ours["capped"] or theirs["capped"] else "idle_source"


def _exact(ours: States, theirs: States) -> list[list[str]]:
    """Names of the exact fields that differ, by user."""
    a, b = exact_fields(ours), exact_fields(theirs)
    what: list[list[str]] = [[] for _ in ours.users]
    for name in a.dtype.names or ():
        for i in np.flatnonzero(a[name] != b[name]).tolist():
            what[i].append(name)
    for i in np.flatnonzero(ours.erased_ms != theirs.erased_ms).tolist():
        what[i].append("erased")
    return what


def _fewer(ours: States, theirs: States) -> npt.NDArray[np.bool_]:
    """(U,) whether a log that has lost records can be why `theirs` differs from `ours`.

    It then holds no more events of a type, or no longer the erasure that took them.
    """
    some = (theirs.head["counts"] <= ours.head["counts"]).all(axis=1)
    found: npt.NDArray[np.bool_] = some | (ours.erased_ms > theirs.erased_ms)
    return found


def _alike(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], what: str
) -> npt.NDArray[np.bool_]:
    """(U,) whether all of a row (U, F) is within the tolerance."""
    relative, absolute = TOLERANCES[what]
    far = np.abs(a - b) > absolute + relative * np.abs(b)
    differs: npt.NDArray[np.bool_] = (far | (np.isnan(a) != np.isnan(b))).max(axis=1, initial=False)
    return ~differs


def _differences(ours: Any, theirs: Any, where: str) -> Iterator[str]:
    """Where two documents differ beyond the tolerance."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in ours.keys() | theirs.keys():
            if where or name not in _OF_COMMIT:
                yield from _differences(ours.get(name), theirs.get(name), f"{where}.{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(a, b, f"{where}[{n}]")
    elif isinstance(ours, float) and isinstance(theirs, float):
        relative, absolute = TOLERANCES["document"]
        if not math.isclose(ours, theirs, rel_tol=relative, abs_tol=absolute):
            yield where
    elif ours != theirs:
        yield where
