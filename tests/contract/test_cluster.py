"""A node in cluster mode: every key of a call lies in the slot of its partition."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from featurestore.backends.nodes import slot
from featurestore.backends.redis import RedisStore
from featurestore.errors import StoreError, StoreUnavailable
from featurestore.settings import StoreSettings
from featurestore.store import Claim, CommitOutcome
from livevalue import checks
from streams.settings import Settings
from tests.contract.deployments import commit, free_port, mark, running, valkey, write


async def test_each_call_stays_in_one_slot(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("c")
    # The bus would take this port + 10,000, which may be no port at all.
    options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    with running(valkey(), folder, *options) as server:
        raw = redis.Redis(port=server.port)
        raw.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
        main = RedisStore.at(f"redis+cluster://127.0.0.1:{server.port}")
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
            assert [entry.users for entry in (await main.claim(p)).outbox] == [("ada",)]
            claim = await main.claim(p)
            assert await main.flip(p, claim.token, "aside", build.token) == CommitOutcome.OK
            assert await main.documents(p, ["ada", "bob"]) == [b"document 1", None]
            assert await main.scan(p, "", 100) == (["ada"], "")
            assert await main.drop(p) == 3
        assert [info.name for info in await main.stores()] == ["aside"]
        assert main.prefix == "lv"

        # A node that lost the slot refuses the call before it begins.
        raw.execute_command("CLUSTER DELSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
        plain = RedisStore.at(server.url)
        for store in (aside, plain):
            with pytest.raises(StoreUnavailable, match="cluster"):
                await store.claim(0)
            await store.close()
        await main.close()
        raw.close()


async def test_a_deployment_lives_on_all_nodes_of_a_cluster(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("c")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    buses = [free_port(), free_port()]
    options = [["--cluster-enabled", "yes", "--cluster-port", str(bus)] for bus in buses]
    with (
        running(valkey(), folder / "a", *options[0]) as one,
        running(valkey(), folder / "b", *options[1]) as two,
    ):
        first, second = redis.Redis(port=one.port), redis.Redis(port=two.port)
        first.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)  # type: ignore[no-untyped-call]
        second.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)  # type: ignore[no-untyped-call]
        first.execute_command("CLUSTER MEET", "127.0.0.1", two.port, buses[1])  # type: ignore[no-untyped-call]
        while any(raw.cluster("info")["cluster_state"] != "ok" for raw in (first, second)):
            await asyncio.sleep(0.02)
        # Any node tells of the others.
        url = f"redis+cluster://127.0.0.1:{two.port}"
        store = RedisStore.at(url)
        for p in range(8):
            await commit(store, await store.claim(p), None, write(f"user {p}"), partition=p)
        assert [info.name for info in await store.stores()] == ["main"]
        for p in range(8):
            assert (await store.load(p, [f"user {p}"])).states == [b"state "]
        for key in ("generations/a", "generations/b", "generations/c"):
            await store.put_blob(key, key.encode())
            assert await store.blob(key) == key.encode()
        assert first.dbsize() > 5
        assert second.dbsize() > 5
        # Of one node of a cluster the message says how to speak to all.
        plain = RedisStore.at(one.url)
        with pytest.raises(StoreUnavailable, match=r"redis\+cluster://"):
            await asyncio.gather(*(plain.claim(p) for p in range(8)))
        # `livevalue doctor` looks at the nodes, too.
        settings = Settings(store=StoreSettings(url=SecretStr(url)))
        found = await asyncio.to_thread(lambda: list(checks.redis(settings)))
        assert ("redis", "ok") in {(check.name, check.status) for check in found}
        assert "failed" not in {check.status for check in found}
        await _move(store, 2, first, second)
        for one_store in (store, plain):
            await one_store.close()
        first.close()
        second.close()


async def _move(store: RedisStore, p: int, source: redis.Redis, target: redis.Redis) -> None:
    """Move the partition's slot key by key: what does not see everything waits, one key is read."""
    moved, user = slot(b"{%d}" % p), f"user {p}"
    port = target.connection_pool.connection_kwargs["port"]

    def say(node: redis.Redis, *words: object) -> Any:
        return node.execute_command(*words)  # type: ignore[no-untyped-call]

    def migrate(*keys: object) -> None:
        say(source, "MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)

    here, there = (say(node, "CLUSTER MYID") for node in (source, target))
    say(target, "CLUSTER SETSLOT", moved, "IMPORTING", here)
    say(source, "CLUSTER SETSLOT", moved, "MIGRATING", there)
    migrate(f"lv:{{{p}}}:v:{user}")
    assert await store.document(p, user) == b"document "
    assert await store.document(p, "nobody") is None
    two = [user, "nobody"]
    for asked in (store.documents(p, two), store.load(p, two), store.scan(p, "", 10)):
        with pytest.raises(StoreUnavailable, match="moves this partition's slot"):
            await asked
    migrate(*say(source, "CLUSTER GETKEYSINSLOT", moved, 100))
    # All are there, none of our functions is.
    with pytest.raises(StoreUnavailable, match="moves this partition's slot"):
        await store.claim(p)
    for node in (target, source):
        say(node, "CLUSTER SETSLOT", moved, "NODE", there)
    assert await store.scan(p, "", 10) == ([user], "")
    assert [entry.users for entry in (await store.claim(p)).outbox] == [(user,)]


async def test_a_master_that_no_sentinel_knows_is_named(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with _sentinel(tmp_path_factory.mktemp("s")) as port:
        # The first of the two is not there; the other one is asked.
        url = f"redis+sentinel://:hunter2@127.0.0.1:{free_port()},127.0.0.1:{port}/shop"
        store = RedisStore(StoreSettings(url=SecretStr(url)))
        with pytest.raises(StoreError, match=r"no master 'shop'.*LIVEVALUE_STORE__URL") as caught:
            await _claim(store)
        assert "hunter2" not in str(caught.value)
        await store.close()


@pytest.mark.parametrize("login", [":secret", "worker:secret"])
async def test_a_sentinel_without_logins_is_asked_for_a_master_that_has_them(
    tmp_path_factory: pytest.TempPathFactory, login: str
) -> None:
    folder = tmp_path_factory.mktemp("s")
    user = ("--user", "worker", "on", ">secret", "~*", "&*", "+@all")
    with running(valkey(), folder, "--requirepass", "secret", *user) as server:
        watch = f"sentinel monitor shop 127.0.0.1 {server.port} 1"
        async with _sentinel(folder, watch, "sentinel auth-pass shop secret") as port:
            url = f"redis+sentinel://{login}@127.0.0.1:{port}/shop"
            store = RedisStore(StoreSettings(url=SecretStr(url)))
            assert (await _claim(store)).watermark is None
            await store.close()


@asynccontextmanager
async def _sentinel(folder: Path, *lines: str) -> AsyncIterator[int]:
    """A Sentinel that asks nobody for a login; -> its port."""
    port = free_port()
    path = folder / "sentinel.conf"
    path.write_text("\n".join(["bind 127.0.0.1", f"port {port}", f"dir {folder}", *lines]) + "\n")
    process = await asyncio.create_subprocess_exec(
        str(valkey()), str(path), "--sentinel", stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        process.kill()
        await process.wait()


async def _claim(store: RedisStore) -> Claim:
    """A claim, once a Sentinel that is starting answers."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await store.claim(0)
            except StoreUnavailable:
                await asyncio.sleep(0.05)
