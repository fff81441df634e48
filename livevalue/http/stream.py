"""The updates stream as one answer: begins with its client, ends with it."""

from __future__ import annotations

import asyncio

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from livevalue.http.updates import HEARTBEAT_S, Feed, Updates


class Stream(Response):
    """Server-sent events of one user, or of all.

    Own code instead of StreamingResponse, whose generator is closed by the garbage collector
    when the client goes (starlette 1.10): the feed leaves the broadcast here at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self, updates: Updates, user: str | None, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        # A length must not be announced, so headers are written below.
        super().__init__()
        self._updates = updates
        self._user = user
        self._heartbeat_s = heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # nginx would hold events back
        ]
        with self._updates.feed(self._user) as feed:
            gone = asyncio.create_task(_end_with_client(receive, feed))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                async for chunk in feed.chunks(self._heartbeat_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                gone.cancel()


async def _end_with_client(receive: Receive, feed: Feed) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    feed.end()
