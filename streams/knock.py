"""Whether a broker lets us in, found out in one short conversation.

kafka-python tries an address for its whole bootstrap time, ten seconds, and then says that there
was no answer: it cannot tell a wrong certificate or password from a network that is down. Here
the same steps are taken once, TLS, login, first request, and what refuses us is told at once.

The requests are of the first versions that Kafka 4 still takes (KIP-896); the steps of the login
are kafka-python's own. Source: kafka.apache.org/protocol.
"""

from __future__ import annotations

import socket
import ssl
import struct
from typing import Any

from kafka.net.sasl import get_sasl_mechanism  # type: ignore[import-untyped]

_CONNECT_S = 5.0
_API_VERSIONS, _METADATA, _HANDSHAKE, _AUTHENTICATE = 18, 3, 17, 36
_NO_TOPICS = struct.pack(">i", 0)


class Refused(Exception):
    """The broker refuses the login; the text is its own."""


class Hung(OSError):
    """The broker closed the connection where an answer was due."""


class HungAtLogin(Hung):
    """It did so in the middle of the login: it refuses it, or goes down in this moment."""


def knock(host: str, port: int, options: dict[str, Any]) -> None:
    """Go through the door and out again; `options` are those of a kafka-python client.

    Raises ssl.SSLError, Refused, Hung or another OSError.
    """
    link = socket.create_connection((host, port), _CONNECT_S)
    try:
        context: ssl.SSLContext | None = options.get("ssl_context")
        if context is not None:
            link = context.wrap_socket(link, server_hostname=host)
        # In TLS 1.3 a server refuses a client's certificate only after the handshake: the answer
        # to a first request shows it.
        _ask(link, _API_VERSIONS, 0, b"")
        if "sasl_mechanism" in options:
            _login(link, options)
        # A listener that wants a login answers nothing else without one.
        _ask(link, _METADATA, 1, _NO_TOPICS)
    finally:
        link.close()


def _login(link: socket.socket, options: dict[str, Any]) -> None:
    mechanism = options["sasl_mechanism"]
    answer = _ask(link, _HANDSHAKE, 1, _text(mechanism))
    if struct.unpack_from(">h", answer)[0]:
        raise Refused(f"it has no {mechanism}")
    steps = get_sasl_mechanism(mechanism)(**options)
    while not steps.is_done():
        said = steps.auth_bytes()
        try:
            answer = _ask(link, _AUTHENTICATE, 0, struct.pack(">i", len(said)) + said)
        except Hung:
            raise HungAtLogin("it closes the connection at the login") from None
        code, length = struct.unpack_from(">hh", answer)
        at = 4 + max(length, 0)
        if code:
            raise Refused(answer[4:at].decode("utf-8", "replace") or f"error {code}")
        try:
            steps.receive(answer[at + 4 :])
        except ValueError:
            raise Refused(f"the steps of {mechanism} do not agree") from None
    if not steps.is_authenticated():
        raise Refused(f"it does not know the password by {mechanism}")


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _ask(link: socket.socket, request: int, version: int, body: bytes) -> bytes:
    """One request; the answer behind its correlation id."""
    frame = struct.pack(">hhi", request, version, 1) + _text("livevalue") + body
    link.sendall(struct.pack(">i", len(frame)) + frame)
    (length,) = struct.unpack(">i", _take(link, 4))
    return _take(link, length)[4:]


def _take(link: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        try:
            more = link.recv(count - len(got))
        except ConnectionResetError:
            more = b""
        if not more:
            raise Hung("it closed the connection")
        got += more
    return got
