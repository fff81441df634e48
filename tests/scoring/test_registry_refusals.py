"""A registry that cannot be used: it is said which setting to correct, and never the password."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer, ThreadingTCPServer
from threading import Thread
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest

from scoring.errors import RegistryError, RegistryUnavailable
from scoring.registry import Registry
from scoring.settings import ModelSettings

SECRET = "Sup3rSecretPw"
LOGIN = f"key:{SECRET}"


class _Http(BaseHTTPRequestHandler):
    """Knows nothing under /empty, and lets nobody in elsewhere."""

    def do_GET(self) -> None:
        self.send_error(404 if self.path.startswith("/empty") else 403)

    def log_message(self, *_: object) -> None:
        pass


class _Ftp(StreamRequestHandler):
    """Lets nobody in, and repeats the password as no server should."""

    def handle(self) -> None:
        self.wfile.write(b"220 hello\r\n")
        self.rfile.readline()
        self.wfile.write(b"331 password?\r\n")
        said = self.rfile.readline().split()[-1]
        self.wfile.write(b"530 no " + said + b" here\r\n")


@pytest.fixture(scope="module")
def at() -> Iterator[dict[str, str]]:
    """Host and port of a server that lets nobody in, by scheme."""
    servers: dict[str, TCPServer] = {
        "http": ThreadingHTTPServer(("127.0.0.1", 0), _Http),
        "ftp": ThreadingTCPServer(("127.0.0.1", 0), _Ftp),
    }
    for server in servers.values():
        Thread(target=server.serve_forever, daemon=True).start()
    yield {name: f"127.0.0.1:{server.server_address[1]}" for name, server in servers.items()}
    for server in servers.values():
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("scheme", ["http", "ftp"])
@pytest.mark.parametrize("login", [LOGIN, f"key:{SECRET}%2F1", f":{SECRET}", SECRET])
async def test_one_that_lets_nobody_in_may_do_so_later_and_its_login_is_not_said(
    at: dict[str, str], scheme: str, login: str
) -> None:
    for place in ("127.0.0.1:1", at[scheme]):  # nothing listens at the first
        with pytest.raises(RegistryUnavailable) as caught:
            await Registry.at(f"{scheme}://{login}@{place}/x").ls()
        _names_the_setting(caught.value)
        assert f"{scheme}://***@{place}/x" in str(caught.value)


async def test_one_that_cannot_be_written_to_does_not_say_its_login(at: dict[str, str]) -> None:
    registry = Registry.at(f"http://{LOGIN}@{at['http']}/empty")
    assert await registry.champion() is None
    with pytest.raises(RegistryUnavailable, match="cannot write") as caught:
        await registry._put("generations/index.json", [])
    _names_the_setting(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"nosuch://{LOGIN}@bucket/x",
        f"ftp://{LOGIN}@127.0.0.1:port/x",
        # Unquoted: what stands before the slash is taken for the port, and said by the parser.
        f"ftp://key:{SECRET}/more@127.0.0.1/x",
        f"nosuch://bucket/x?sig={SECRET}",
    ],
)
async def test_a_url_that_cannot_be_opened_is_wrong_for_good_and_its_login_is_not_said(
    url: str,
) -> None:
    with pytest.raises(RegistryError, match="cannot be opened") as caught:
        await Registry.at(url).champion()
    assert not isinstance(caught.value, RegistryUnavailable)
    _names_the_setting(caught.value)


async def test_a_registry_is_opened_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some drivers connect for it."""
    threads, opens = list[int](), fsspec.core.url_to_fs

    def opened(url: str) -> Any:
        threads.append(threading.get_ident())
        return opens(url)

    monkeypatch.setattr(fsspec.core, "url_to_fs", opened)
    registry = Registry.at("memory://beside")
    assert await registry.champion() is None and await registry.ls() == []
    assert len(threads) == 1 and threads[0] != threading.get_ident()


async def test_a_folder_that_is_none_is_named_whole(tmp_path: Path) -> None:
    (tmp_path / "generations").write_text("a file")
    with pytest.raises(RegistryUnavailable, match=str(tmp_path)) as caught:
        await Registry.at(str(tmp_path)).ls()
    _names_the_setting(caught.value)


def test_the_settings_of_a_model_do_not_show_a_login() -> None:
    settings = ModelSettings(registry=f"s3://{LOGIN}@bucket/x")
    assert SECRET not in f"{settings!r} {settings}"


def _names_the_setting(error: Exception) -> None:
    said = "".join(traceback.format_exception(error))
    assert "LIVEVALUE_MODEL__REGISTRY" in str(error)
    assert SECRET not in said, said
