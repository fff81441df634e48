"""`verify` finds what is wrong, names it, and finds nothing where nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from featurestore.partitioner import partition
from livevalue.embedded import Stack
from streams import sweep
from streams.row import join, split
from tests.e2e.deployment import Deployment, some_events
from tests.parity.load import Load
from tests.parity.nasty import nasty
from tests.parity.onstack import send, serve, shaped, verified
from tests.parity.playing import generation

PARTITIONS = 3


class Rows:
    """States and documents as they lie in Redis."""

    def __init__(self, deployment: Deployment) -> None:
        self._redis = deployment.redis

    def _at(self, user: str, kind: str) -> str:
        p = partition(user, PARTITIONS, "murmur2")
        return f"lv:main:{{{p}}}:s:{user}" if kind == "state" else f"lv:{{{p}}}:v:{user}"

    def get(self, user: str, kind: str = "state") -> bytes:
        held: Any = self._redis.get(self._at(user, kind))
        assert held is not None
        return bytes(held)

    def set(self, user: str, value: bytes, kind: str = "state") -> None:
        self._redis.set(self._at(user, kind), value)

    def delete(self, user: str, kind: str = "state") -> None:
        self._redis.delete(self._at(user, kind))

    def list(self, user: str, what: str, more: float | None) -> None:
        """Move a user's rank or due date by `more`; None takes it away."""
        p = partition(user, PARTITIONS, "murmur2")
        key = f"lv:{{{p}}}:top" if what == "rank" else f"lv:main:{{{p}}}:due"
        if more is None:
            assert self._redis.zrem(key, user)
        else:
            self._redis.zincrby(key, more, user)


def test_every_kind_of_damage_is_found_and_named(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=True, partitions=PARTITIONS)
    with Deployment(settings, tmp_path) as deployment:
        serve(settings, generation())
        send(deployment, nasty(1200, users=60, seed=3, erases=1))
        worker = deployment.start()
        deployment.settle()
        assert worker.stop() == 0
        assert verified(settings)["different"] == 0

        rows = Rows(deployment)
        rows.delete("user-2")
        rows.set("user-3", rows.get("user-5"))
        state, score = split(rows.get("user-6"))
        other = split(rows.get("user-8"))[1]
        rows.set("user-6", join(state, other))
        document = json.loads(rows.get("user-9", "document"))
        document["values"]["d30"]["p90"] += 0.5
        rows.set("user-9", json.dumps(document).encode(), "document")
        rows.delete("user-10", "document")
        rows.set("nobody", rows.get("user-11"))
        rows.set("stranger", rows.get("user-11", "document"), "document")
        rows.list("user-12", "rank", 1e-3)
        rows.list("user-13", "due", -1e11)
        rows.list("user-15", "rank", None)

        found = verified(settings)
        assert not any(found["excepted"].values())
        differs = {d["user_id"]: d["differs"] for d in found["first_differences"]}
        assert found["different"] == len(differs)
        assert differs.pop("user-2") == ["only in the log"]
        assert "id_hi" in differs.pop("user-3")
        assert "carry" in differs.pop("user-6")
        assert differs.pop("user-9") == [".values.d30.p90"]
        assert differs.pop("user-10") == ["document"]
        assert differs.pop("nobody") == ["only in the store"]
        assert differs.pop("stranger") == ["a document of nobody"]
        assert differs.pop("user-12") == differs.pop("user-15") == ["rank"]
        assert differs.pop("user-13") == ["due date"]
        assert not differs
        # Just after a flip documents are the other store's: states alone are compared.
        for p in range(PARTITIONS):
            deployment.redis.hset(f"lv:main:{{{p}}}:wm", "progress", sweep.PENDING)
        waiting = verified(settings)
        named = {d["user_id"] for d in waiting["first_differences"]}
        assert {"user-2", "user-3", "user-6", "nobody"} <= named
        assert not named & {"user-9", "user-10", "user-12", "user-13", "stranger"}
        assert 50 < waiting["unswept"] < waiting["users"]
        assert len(rows.get("user-6")) != 0
        assert score != other

        some = verified(settings, sample=9)
        assert some["users"] <= 9


def test_a_store_that_moves_meanwhile_is_not_taken_for_a_wrong_one(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=PARTITIONS)
    with Deployment(settings, tmp_path) as deployment:
        serve(settings, generation())
        for source, event in some_events(1500, 20):
            deployment.send(source, event)
        deployment.flush()
        deployment.start()
        deployment.settle()
        before = deployment.positions()
        with Load(deployment, 20, every_s=0.001):
            for _ in range(4):
                found = verified(settings)
                assert (found["different"], found["users"]) == (0, 20), found
        assert sum(deployment.positions().values()) > sum(before.values())
