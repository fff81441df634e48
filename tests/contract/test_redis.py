"""What only Redis can do wrong, and what the Redis backend then says and leaves alone."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from featurestore.backends.redis import RedisStore, library
from featurestore.errors import (
    StoreAuthError,
    StoreError,
    StoreHalfDone,
    StoreUnavailable,
    StoreVersionError,
)
from featurestore.settings import StoreSettings
from featurestore.store import Commit, CommitOutcome, Identity, Write
from tests.contract.conftest import Start
from tests.contract.deployments import (
    InRedis,
    Server,
    commit,
    debian_redis,
    free_port,
    mark,
    running,
    valkey,
    write,
)


async def test_keys_are_named_as_readers_are_promised(in_redis: InRedis) -> None:
    store = in_redis.open("aside")
    claim = await store.claim(7)
    await commit(store, claim, None, write("ada", due_ms=1), partition=7)
    await store.set_next(7, "main")
    p = in_redis.prefix
    assert [key.decode() for key in in_redis.held()] == sorted(
        [f"{p}:{{7}}:{what}" for what in ("active", "next", "out", "seq", "stores", "top")]
        + [f"{p}:{{7}}:v:ada"]
        + [f"{p}:aside:{{7}}:{what}" for what in ("due", "s:ada", "wm")]
    )
    assert in_redis.raw.get(f"{p}:{{7}}:v:ada") == b"document "
    assert in_redis.raw.hget(f"{p}:aside:{{7}}:wm", "positions") == b"10,10,10"
    assert RedisStore.at(in_redis.server.url).prefix == "lv"


async def test_a_load_and_a_commit_are_one_step_of_the_server_each(in_redis: InRedis) -> None:
    store = in_redis.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada"))

    def answered() -> int:
        """Transactions and function calls that the server has answered."""
        info = in_redis.raw.info("commandstats")
        return sum(info.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("exec", "fcall"))

    start = answered()
    await store.load(0, [f"user {i}" for i in range(5000)])
    assert answered() - start == 1
    await commit(store, claim, before, *(write(f"user {i}") for i in range(5000)))
    assert answered() - start == 2


async def test_functions_that_are_flushed_are_loaded_again(in_redis: InRedis) -> None:
    store = in_redis.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada", "1"))
    in_redis.raw.function_flush()
    before = await commit(store, claim, before, write("ada", "2"))
    in_redis.raw.function_flush()
    # Several workers at once: one loads, none fails.
    claims = await asyncio.gather(*(in_redis.open().claim(p) for p in range(1, 9)))
    assert all(claim.watermark is None for claim in claims)
    assert len(in_redis.raw.function_list()) == 1
    assert (await store.load(0, ["ada"])).states == [b"state 2"]
    assert (await store.load(0, [])).watermark == before


async def test_another_releases_functions_are_left_alone(in_redis: InRedis) -> None:
    version, text = library()
    in_redis.raw.function_flush()
    in_redis.raw.function_load(text.replace(version.encode(), b"older").decode())
    await in_redis.open().claim(0)
    for name in ("livevalue_older", f"livevalue_{version}"):
        assert len(in_redis.raw.function_list(name)) == 1
    in_redis.raw.function_flush()


@pytest.mark.parametrize("key", ["main:{0}:wm", "main:{0}:due", "{0}:active", "{0}:seq", "{0}:out"])
async def test_a_key_of_another_type_stops_a_commit_before_it_writes(
    in_redis: InRedis, key: str
) -> None:
    store = in_redis.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada", "1"))
    name = f"{in_redis.prefix}:{key}"
    in_redis.raw.delete(name)
    in_redis.raw.sadd(name, "foreign")
    held = in_redis.snapshot()
    step = Commit(claim.token, before, mark(2, claim.token), [write("ada", "2"), write("bob")])
    with pytest.raises(StoreError, match=r"LIVEVALUE_STORE__URL.*holds a set"):
        await store.commit(0, step)
    assert in_redis.snapshot() == held


@pytest.mark.parametrize("key", ["main:{0}:wm", "{0}:active", "{0}:out"])
async def test_a_key_of_another_type_stops_a_claim_before_it_writes(
    in_redis: InRedis, key: str
) -> None:
    store = in_redis.open()
    name = f"{in_redis.prefix}:{key}"
    in_redis.raw.zadd(name, {"foreign": 1})
    with pytest.raises(StoreError, match="LIVEVALUE_STORE__URL"):
        await store.claim(0)
    assert in_redis.held() == [name.encode()]


async def test_the_function_refuses_arguments_that_do_not_fit_and_writes_nothing(
    in_redis: InRedis,
) -> None:
    store = in_redis.open()
    claim = await store.claim(0)
    await commit(store, claim, None, write("ada", "1"))
    held = in_redis.snapshot()
    p, name = in_redis.prefix, f"livevalue_commit_{library()[0]}"
    keys = [f"{p}:main:{{0}}:wm", f"{p}:main:{{0}}:due"]
    keys += [f"{p}:{{0}}:{what}" for what in ("active", "seq", "out", "top", "stores")]
    keys += [f"{p}:main:{{0}}:s:bob", f"{p}:{{0}}:v:bob"]
    good: list[str | bytes] = [claim.token, "main", "1", "10,10,10", "1", claim.token, "log"]
    good += ["2", "-1", "2:x\0", str(len(f"{p}:main:{{0}}:s:")), "1", "S"]
    good += [b"\0" * 8, b"\0" * 8, "1", "seq", "2", "state", "document"]
    nan = b"\0\0\0\0\0\0\xf8\x7f"
    broken: dict[int, str | bytes] = {7: "x", 8: "", 10: "", 11: "2", 12: "?", 13: nan, 14: b"\0"}
    for place, value in broken.items():
        bad = [*good[:place], value, *good[place + 1 :]]
        with pytest.raises(redis.ResponseError, match="LVINVALID"):
            in_redis.raw.fcall(name, len(keys), *keys, *bad)
    for bad in (good[:-1], [*good, "more"]):
        with pytest.raises(redis.ResponseError, match="LVINVALID"):
            in_redis.raw.fcall(name, len(keys), *keys, *bad)
    assert in_redis.snapshot() == held
    assert in_redis.raw.fcall(name, len(keys), *keys, *good) == b"OK"


async def test_a_full_redis_refuses_commits_and_still_trims_erases_claims_and_drops(
    in_redis: InRedis,
) -> None:
    store, aside = in_redis.open(), in_redis.open("aside")
    claim, build = await store.claim(0), await aside.claim(0)
    await commit(aside, build, None, write("ada", "b"), publishes=False)
    first = await commit(store, claim, None, write("ada", "1"), write("bob", "1"))
    second = await commit(store, claim, first, write("ada", "2"))
    in_redis.raw.config_set("maxmemory", "1mb")
    try:
        held = in_redis.snapshot()
        step = Commit(claim.token, second, mark(3, claim.token), [write("ada", "3")])
        with pytest.raises(StoreUnavailable, match=r"used up its memory.*raise maxmemory"):
            await store.commit(0, step)
        assert in_redis.snapshot() == held
        assert await store.trim(0, claim.token, second.identity) is True
        again = await store.claim(0)
        assert [entry.identity for entry in again.outbox] == [second.identity]
        await commit(store, again, second, Write("ada", b"marker", b""))
        assert await store.document(0, "ada") is None
        assert await aside.drop(0) > 0
        assert await aside.scan(0, "", 9) == ([], "")
    finally:
        in_redis.raw.config_set("maxmemory", "0")


async def test_a_store_dropped_halfway_is_taken_for_no_fold(in_redis: InRedis) -> None:
    store = in_redis.open()
    claim = await store.claim(0)
    await commit(store, claim, None, write("ada"), publishes=False)
    keys = [f"{in_redis.prefix}:{key}" for key in ("main:{0}:wm", "main:{0}:due")]
    keys += [f"{in_redis.prefix}:{key}" for key in ("{0}:active", "{0}:stores")]
    in_redis.raw.fcall(f"livevalue_drop_{library()[0]}", 4, *keys, "main", "begin")
    for call in (store.claim(0), store.load(0, ["ada"])):
        with pytest.raises(StoreError, match=r"dropped halfway.*stores drop"):
            await call
    assert await store.stores() == []
    assert await store.drop(0) == 1 + 1  # the mark of the half drop, and the state
    assert (await store.claim(0)).watermark is None


async def test_a_watermark_that_cannot_be_read_names_the_way_out(in_redis: InRedis) -> None:
    store = in_redis.open()
    claim = await store.claim(0)
    await commit(store, claim, None, write("ada"))
    in_redis.raw.hset(f"{in_redis.prefix}:main:{{0}}:wm", "positions", "ten")
    with pytest.raises(StoreError, match="restore Redis from a backup"):
        await store.load(0, ["ada"])


async def test_a_connection_that_was_killed_costs_one_call(in_redis: InRedis) -> None:
    store = in_redis.open()
    claim = await store.claim(0)
    in_redis.raw.client_kill_filter(_type="normal", skipme=True)
    for _ in range(2):
        try:
            loaded = await store.load(0, ["ada"])
            break
        except StoreUnavailable:
            continue
    assert loaded.token == claim.token


async def test_a_cancelled_call_leaves_no_answer_for_the_next(in_redis: InRedis) -> None:
    store = in_redis.open()
    claim = await store.claim(0)
    await commit(store, claim, None, *(write(f"user {i}", str(i)) for i in range(2000)))
    for delay in (0.0, 0.0005, 0.001, 0.002):
        load = asyncio.create_task(store.load(0, [f"user {i}" for i in range(2000)]))
        await asyncio.sleep(delay)
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        assert (await store.load(0, ["user 7"])).states == [b"state 7"]


async def test_calls_at_the_same_time_keep_apart(in_redis: InRedis) -> None:
    store = in_redis.open()
    for p in range(8):
        await commit(store, await store.claim(p), None, write("ada", str(p)), partition=p)
    loads = await asyncio.gather(*(store.load(p % 8, ["ada"]) for p in range(64)))
    assert [loaded.states for loaded in loads] == [[b"state %d" % (p % 8)] for p in range(64)]


def test_a_store_may_be_used_from_one_event_loop_after_another(server_of: Start) -> None:
    store = RedisStore.at(server_of("valkey").url, prefix="loops")
    for _ in range(3):
        asyncio.run(store.claim(0))
    asyncio.run(store.drop(0))
    asyncio.run(store.close())


async def test_siblings_share_connections_and_keys(in_redis: InRedis) -> None:
    store = in_redis.open()
    aside = store.sibling("aside")
    claim = await aside.claim(0)
    await commit(aside, claim, None, write("ada"), publishes=False)
    await aside.close()
    assert [info.name for info in await store.stores()] == ["aside"]


@pytest.mark.parametrize("form", ["unix://{socket}", "unix://{socket}?db=3", "{url_3}"])
async def test_urls_of_sockets_and_databases(in_redis: InRedis, form: str) -> None:
    at = in_redis.server
    url = form.format(socket=at.socket, url_3=f"redis://localhost:{at.port}/3")
    store = in_redis.open(url=url)
    claim = await store.claim(0)
    await commit(store, claim, None, write("ada"))
    database = 0 if form == "unix://{socket}" else 3
    with redis.Redis(port=at.port, db=database) as raw:
        assert raw.get(f"{in_redis.prefix}:{{0}}:v:ada") == b"document "
        if database:
            raw.flushdb()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://:hunter2@cache", "not a URL of Redis"),
        ("redis://:hunter2@cache:port", "not a URL of Redis"),
        ("redis://:hunter2@cache/main", "not a URL of Redis"),
        ("unix:hunter2", "not a URL of Redis"),
        ("redis://:hunter2@cache?sentinel=1", "option that is not known: sentinel"),
        ("rediss://:hunter2@cache?ssl_ca_certs=/nowhere", "file that does not exist: /nowhere"),
    ],
)
async def test_a_wrong_url_is_named_by_its_setting_and_not_shown(url: str, says: str) -> None:
    with pytest.raises((StoreError, StoreUnavailable), match=says) as caught:
        await RedisStore(StoreSettings(url=SecretStr(url))).claim(0)
    assert "LIVEVALUE_STORE__URL" in str(caught.value)
    assert "hunter2@" not in str(caught.value)


async def test_an_unreachable_redis_is_unavailable() -> None:
    port = free_port()
    for url in (f"redis://:hunter2@127.0.0.1:{port}", "unix:///nowhere/redis.sock"):
        with pytest.raises(StoreUnavailable, match="LIVEVALUE_STORE__URL") as caught:
            await RedisStore.at(url).load(0, ["ada"])
        assert "hunter2" not in str(caught.value)


async def test_a_redis_that_does_not_answer_in_time_is_unavailable(in_redis: InRedis) -> None:
    store = RedisStore(StoreSettings(url=SecretStr(in_redis.server.url), timeout_s=0.2))
    await store.load(0, ["ada"])
    in_redis.raw.client_pause(600, all=True)
    with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.2 s"):
        await store.load(0, ["ada"])
    with pytest.raises(StoreUnavailable, match=r"within 0\.2 s.*LIVEVALUE_STORE__URL"):
        await store.load(0, ["ada"])  # over a new connection
    in_redis.raw.ping()  # answered when the pause is over
    assert (await store.load(0, ["ada"])).states == [None]
    await store.close()


async def test_something_else_on_the_port_is_unavailable() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    other = await asyncio.start_server(http, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    with pytest.raises(StoreUnavailable, match="LIVEVALUE_STORE__URL"):
        await RedisStore.at(f"redis://127.0.0.1:{port}").claim(0)
    other.close()


@pytest.fixture(params=["valkey", "redis"])
def guarded(
    request: pytest.FixtureRequest, server_of: Start, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with the password `correct`, and an account `reader` that may only GET."""
    server_of(request.param)  # skips where there is none
    binary = valkey() if request.param == "valkey" else debian_redis()
    assert binary is not None
    with running(binary, tmp_path_factory.mktemp("g"), "--requirepass", "correct") as server:
        with redis.Redis(port=server.port, password="correct") as raw:
            allowed = ["+get", "+fcall", "+multi", "+exec"]
            raw.acl_setuser("reader", enabled=True, passwords=["+r"], keys=["*"], commands=allowed)
        yield server


async def test_a_refused_account_is_told_what_to_set(guarded: Server) -> None:
    at = f"127.0.0.1:{guarded.port}"
    for url, says in [
        (f"redis://{at}", "wants a password"),
        (f"redis://:hunter2@{at}", "refuses the user name or password"),
        (f"redis://nobody:hunter2@{at}", "refuses the user name or password"),
        (f"redis://reader:r@{at}", "docs/acl/redis.acl"),
    ]:
        store = RedisStore.at(url)
        for call in (store.claim(0), store.load(0, ["ada"]), store.stores()):
            with pytest.raises(StoreAuthError, match=says) as caught:
                await call
            assert "LIVEVALUE_STORE__URL" in str(caught.value)
            assert "hunter2" not in str(caught.value)
        await store.close()
    store = RedisStore.at(f"redis://:correct@{at}")
    assert (await store.claim(0)).watermark is None
    await store.close()


async def test_a_password_that_redis_does_not_want_is_named(server_of: Start) -> None:
    server = server_of("valkey")
    with pytest.raises(StoreAuthError, match="LIVEVALUE_STORE__URL") as caught:
        await RedisStore.at(f"redis://:hunter2@127.0.0.1:{server.port}").claim(0)
    assert "hunter2" not in str(caught.value)


async def test_a_database_that_redis_does_not_have_is_named(server_of: Start) -> None:
    server = server_of("valkey")
    with pytest.raises(StoreError, match=r"no such database.*LIVEVALUE_STORE__URL"):
        await RedisStore.at(f"redis://127.0.0.1:{server.port}/99").claim(0)


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        ("LOADING Redis is loading the dataset in memory", StoreUnavailable, "reading its data"),
        ("READONLY You can't write against a read only replica.", StoreUnavailable, "the primary"),
        ("MISCONF Redis is configured to save RDB snapshots", StoreUnavailable, "free its disk"),
        ("TRYAGAIN Multiple keys request during rehashing", StoreUnavailable, "wait"),
        ("MOVED 866 10.0.0.1:6379", StoreUnavailable, "LIVEVALUE_STORE__URL"),
        ("BUSY Redis is busy running a script.", StoreUnavailable, "busy"),
        ("ERR unknown command 'FCALL', with args", StoreVersionError, "Redis 7 or newer"),
        ("ERR max number of clients reached", StoreUnavailable, "maxclients"),
    ],
)
async def test_a_refusal_of_the_server_says_what_to_do(
    reply: str, error: type[Exception], says: str
) -> None:
    """The replies that these servers give only in a state that a test cannot make quickly."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (data := await reader.read(1 << 16)) != b"":
            name = b"+OK\r\n" if b"SETNAME" in data else f"-{reply}\r\n".encode()
            writer.write(name)
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    store = RedisStore.at(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(error, match=says):
        await store.claim(0)
    await store.close()
    server.close()


async def test_a_replica_is_told_from_the_primary(server_of: Start, tmp_path: Path) -> None:
    server = server_of("valkey")
    with redis.Redis(port=server.port) as raw:
        raw.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(StoreUnavailable, match="point LIVEVALUE_STORE__URL at the primary"):
                await RedisStore.at(server.url, prefix="replica").claim(0)
        finally:
            raw.replicaof("NO", "ONE")


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate of its own for localhost."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return key, certificate


async def test_tls_is_spoken_and_checked(tmp_path_factory: pytest.TempPathFactory) -> None:
    binary = debian_redis()
    if binary is None:
        pytest.skip(
            "no redis-server on the PATH (apt-get install redis-server), Valkey's has no TLS"
        )
    folder = tmp_path_factory.mktemp("t")
    key, certificate = _certificate(folder)
    port = free_port()
    options = ["--tls-port", str(port), "--tls-cert-file", str(certificate)]
    options += ["--tls-key-file", str(key), "--tls-auth-clients", "no"]
    options += ["--tls-ca-cert-file", str(certificate)]
    with running(binary, folder, *options) as server:
        store = RedisStore.at(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}")
        claim = await store.claim(0)
        users = [write(f"user {i}", "x" * 3000) for i in range(3000)]
        await commit(store, claim, None, *users)
        loaded = await store.load(0, [w.user for w in users])
        assert loaded.states == [w.state for w in users]
        await store.close()
        with pytest.raises(StoreError, match=r"not trusted.*LIVEVALUE_STORE__CA_FILE"):
            await RedisStore.at(f"rediss://localhost:{port}").claim(0)
        url = SecretStr(f"rediss://localhost:{server.port}")
        plain = RedisStore(StoreSettings(url=url, timeout_s=0.3))
        with pytest.raises((StoreError, StoreUnavailable), match="LIVEVALUE_STORE__URL"):
            await plain.claim(0)


async def test_published_identity_survives_any_writers_name(in_redis: InRedis) -> None:
    store = in_redis.open()
    claim = await store.claim(0)
    before = await commit(store, claim, None, write("ada"))
    strange = Identity(before.identity.seq, "a:b|c,d e")
    assert await store.trim(0, claim.token, strange)
    held = (await store.load(0, [])).watermark
    assert held is not None
    assert held.published == strange
    step = Commit(claim.token, held, mark(2, claim.token, published=held.published))
    assert await store.commit(0, step) == CommitOutcome.OK


async def test_a_wipe_that_was_broken_off_is_refused_to_all_until_it_is_done_again(
    in_redis: InRedis,
) -> None:
    store = in_redis.open()
    claim = await store.claim(0)
    await commit(store, claim, None, write("ada"))
    in_redis.raw.hset(f"{in_redis.prefix}:main:{{0}}:wm", "dropping", "wipe")
    for refused in (store.claim(0), store.load(0, []), store.load(0, ["ada"])):
        with pytest.raises(StoreHalfDone, match="recover wipe"):
            await refused
    wanted = mark(2, "another", (0, 0, 0))
    # Nobody can claim it any more, so a wipe brings its own token.
    assert await store.reset(0, "another", wanted, wipe=True) == CommitOutcome.OK
    assert (await store.load(0, ["ada"])).watermark == wanted
    assert (await store.load(0, ["ada"])).states == [None]


async def test_a_walk_goes_on_whole_at_a_server_that_took_the_others_place(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each process hashes keys by a seed of its own, so a cursor of one is noise to another."""
    folder = tmp_path_factory.mktemp("w")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    with running(valkey(), folder / "a") as old, running(valkey(), folder / "b") as new:
        store = RedisStore.at(old.url)
        users = {f"user {i}" for i in range(3000)}
        await commit(store, await store.claim(0), None, *[write(user) for user in sorted(users)])
        seen, cursor = await store.scan(0, "", 1500)
        assert cursor
        raw, copy = redis.Redis(port=old.port), redis.Redis(port=new.port)
        for key in raw.scan_iter("lv:*", count=10_000):
            copy.restore(key, 0, raw.dump(key) or b"")
        other = RedisStore.at(new.url)
        while cursor:
            page, cursor = await other.scan(0, cursor, 400)
            seen += page
        assert set(seen) == users
        for client in (store, other):
            await client.close()
