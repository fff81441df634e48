"""Who may ask, and what a browser is told to refuse. Plain ASGI, so that streams pass through.

Without a token anybody who reaches the port may read. On loopback that is this machine's users,
and web pages must not become one of them: a page elsewhere could point its own name at 127.0.0.1
(DNS rebinding), so there only loopback names are answered. With a token (`Authorization: Bearer`,
RFC 6750) all data need it; the console's files and the probes hold none and do not.
"""

from __future__ import annotations

import hmac
import ipaddress
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from livevalue.http.replies import said
from livevalue.output import Refused
from streams.settings import ServeSettings

_OPEN = ("/", "/docs", "/livez", "/readyz")
_HEADERS = {
    # Everything from here, nothing inline: a user id that slipped into the page could not run.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # addresses name users
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def token_of(serve: ServeSettings) -> str:
    """The token that clients must show; "" = none is asked for."""
    token = serve.token.get_secret_value().strip()
    if token or not serve.token_file:
        return token
    try:
        token = Path(serve.token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no UTF-8 text"
        raise Refused(
            f"cannot read the token in {serve.token_file!r} ({why}): set "
            "LIVEVALUE_SERVE__TOKEN_FILE to a file that holds it, or to nothing"
        ) from None
    if not token:
        raise Refused(f"{serve.token_file!r} is empty: write the token into it")
    return token


def is_loopback(host: str) -> bool:
    """Is this address this machine only?

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Checks each request and adds the headers to each answer."""

    def __init__(self, app: ASGIApp, *, token: str, loopback: bool) -> None:
        self._app = app
        self._token = token.encode()
        self._local_names_only = loopback and not token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(answer: Message) -> None:
            if answer["type"] == "http.response.start":
                headers = MutableHeaders(scope=answer)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(answer)

        headers = Headers(scope=scope)
        answer: ASGIApp = self._app
        if self._local_names_only and not is_loopback(_name(headers.get("host", ""))):
            answer = said(
                421,
                "wrong_host",
                "without a token only this machine's own names are answered: ask 127.0.0.1, or "
                "set LIVEVALUE_SERVE__TOKEN",
            )
        elif not self._may(scope["path"], headers):
            answer = said(
                401,
                "unauthorized",
                "send the token of this server as `Authorization: Bearer TOKEN`",
                {"WWW-Authenticate": "Bearer"},
            )
        await answer(scope, receive, with_headers)

    def _may(self, path: str, headers: Headers) -> bool:
        if not self._token or path in _OPEN or path.startswith("/static/"):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Headers are latin-1 on the wire; in constant time, so that timing tells no prefix.
        right = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        return scheme.lower() == "bearer" and right


def _name(host: str) -> str:
    """Of a Host header without its port.

    >>> _name("[::1]:8080"), _name("localhost:8080"), _name("127.0.0.1")
    ('::1', 'localhost', '127.0.0.1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
