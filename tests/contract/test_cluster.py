"""A node in cluster mode: every key of a call lies in the slot of its partition."""

from __future__ import annotations

import asyncio

import pytest
import redis

from featurestore.backends.redis import RedisStore
from featurestore.errors import StoreUnavailable
from featurestore.store import CommitOutcome
from tests.contract.deployments import commit, free_port, mark, running, valkey, write


async def test_each_call_stays_in_one_slot(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("c")
    # The bus would take this port + 10,000, which may be no port at all.
    options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    with running(valkey(), folder, *options) as server:
        raw = redis.Redis(port=server.port)
        raw.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
        main = RedisStore.at(server.url)
        aside = main.sibling("aside")
        while raw.cluster("info")["cluster_state"] != "ok":
            await asyncio.sleep(0.02)
        for p in (0, 5):
            claim, build = await main.claim(p), await aside.claim(p)
            first = await commit(main, claim, None, write("ada", "1", due_ms=5), partition=p)
            after = mark(1, build.token, first.positions)
            await commit(
                aside, build, None, write("ada"), publishes=False, after=after, partition=p
            )
            assert (await main.load(p, ["ada", "bob"])).states == [b"state 1", None]
            assert await main.trim(p, claim.token, first.identity)
            assert (await main.claim(p)).documents == {"ada": b"document 1"}
            claim = await main.claim(p)
            assert await main.flip(p, claim.token, "aside", build.token) == CommitOutcome.OK
            assert await main.documents(p, ["ada", "bob"]) == [b"document 1", None]
            assert await main.scan(p, "", 100) == (["ada"], "")
            assert await main.drop(p) == 3
        assert [info.name for info in await main.stores()] == ["aside"]
        assert main.prefix == "lv"

        # A node that lost the slot refuses the call before it begins.
        raw.execute_command("CLUSTER DELSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
        with pytest.raises(StoreUnavailable, match="cluster"):
            await aside.claim(0)
        await main.close()
        raw.close()
