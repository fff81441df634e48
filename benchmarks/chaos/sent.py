"""What was said on `scores`: each revision once, none going back, and none missing in between."""

from __future__ import annotations

import bisect
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.chaos.found import Audit
from featurestore import times
from featurestore.columns import NO_TIME


class Sent:
    """The documents of one partition on `scores`."""

    def __init__(self, records: Sequence[Any], found: Audit) -> None:
        self.last: dict[str, bytes | None] = {}
        self._found = found
        self._revisions: dict[str, list[int]] = defaultdict(list)  # in order of sending
        self._before: list[tuple[str, int, int]] = []  # user, revision, the one before it
        self._begun: dict[str, list[int]] = defaultdict(list)  # revisions that name none before
        self._since: dict[str, int] = {}  # when the history of the last document began
        for record in records:
            user = record.key.decode()
            self.last[user] = record.value
            if record.value is None:
                self._since[user] = NO_TIME  # whatever comes is later
                continue
            document = json.loads(record.value)
            self._look_back(user, document)
            self._take(user, document["revision"], document["previous"])

    def _take(self, user: str, revision: int, previous: Mapping[str, Any] | None) -> None:
        said = self._revisions[user]
        if revision in said:
            self._found.outputs_twice += 1
            self._found.show("twice", user, revision)
        elif said and revision < said[-1]:
            self._found.backwards += 1
            self._found.show("backwards", user, said[-1], revision)
        said.append(revision)
        if previous is not None:
            self._before.append((user, revision, int(previous["revision"])))
        else:
            self._begun[user].append(revision)

    def _look_back(self, user: str, document: Mapping[str, Any]) -> None:
        """A history that begins later than it did is one of which something was forgotten.

        What was said before that is not to be named. One that is named and was never sent is of
        the same transaction, and later.
        """
        since, said = times.parse(document["history"]["first_event_at"]), self._revisions[user]
        forgot = bool(said) and since > self._since[user]
        previous = document["previous"]
        if forgot and previous is not None and previous["revision"] <= max(said):
            self._found.users_wrong += 1
            self._found.show("previous from before an erasure", user, document["revision"])
        self._since[user] = since

    def look_for_holes(self, boundaries: Sequence[int]) -> None:
        """Find revisions that were never sent, and that no transaction explains.

        boundaries: the last commits of the partition's transactions. What a transaction sends of
        a user is the last of its commits; the ones before it need not be sent.
        """
        for user, revision, before in self._before:
            said = sorted(self._revisions[user])
            at = bisect.bisect_left(said, before)
            if at < len(said) and said[at] == before:
                continue
            end = bisect.bisect_left(boundaries, before)
            until = boundaries[end] if end < len(boundaries) else before  # by no transaction
            if not (at < len(said) and said[at] <= until):
                self._found.outputs_missing += 1
                self._found.show("hole", user, before, revision, until)

    def look_for_beginnings(self, users: Sequence[str], undone_to: Sequence[int]) -> None:
        """Find documents that name none before them though there was one.

        users: who was never erased. undone_to: a commit that each roll-back left. What a roll-back
        undid may be all that had been said of a user.
        """
        for user in users:
            first = min(self._revisions[user], default=0)
            for revision in self._begun[user]:
                if revision > first and not any(first > seq for seq in undone_to):
                    self._found.outputs_missing += 1
                    self._found.show("names none before it", user, revision, first)


def boundaries(published: Sequence[Any]) -> list[int]:
    """The last commits of a partition's transactions, in order."""
    return sorted(int(json.loads(record.value)["seq"]) for record in published)
