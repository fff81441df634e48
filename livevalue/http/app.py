"""The endpoints. All answers are JSON; an error is {"error": code, "message": what to do}.

| path | answers |
|---|---|
| /v1/users/{user}?at= | the document, now or at a time by its silence curve; 404 where unknown |
| /v1/top?n= | documents of the highest headline value |
| /v1/updates?user= | server-sent events: each update as it is published |
| /v1/meta | unit, horizons, clock and now, partitions: what a reader must know |
| /livez, /readyz | the loop answers / Redis holds values and Kafka answers |
| /, /docs, /openapi.json | the console, this interface for people and for programs |

502 and 504 are a proxy's; 503 is ours, with what the operator does next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from featurestore import times
from featurestore.backends.redis import RedisStore
from featurestore.errors import FeatureStoreError, StoreError
from livevalue import __version__
from livevalue.client import ValueClient
from livevalue.http.replies import reply, said
from livevalue.http.security import Guard, is_loopback
from livevalue.http.stream import Stream
from livevalue.http.updates import CLIENTS, HEARTBEAT_S, TooMany, Updates
from scoring.values import UserValue
from streams.errors import StreamsError
from streams.settings import Settings

_STATIC = Path(__file__).parent / "static"
_MOST = 1000  # documents in one answer: 2 MB

router = APIRouter()


class Problem(BaseModel):
    """What an error says."""

    error: str
    message: str


_AWAY: dict[int | str, dict[str, Any]] = {
    503: {"model": Problem, "description": "Redis or Kafka is away, or there are no values yet"}
}

_ASKED: dict[int | str, dict[str, Any]] = {
    **_AWAY,
    422: {"model": Problem, "description": "A wrong question; the message says what is wrong"},
}


def create_app(settings: Settings, *, token: str = "", heartbeat_s: float = HEARTBEAT_S) -> FastAPI:
    """The application of one deployment; `token` "" asks for none."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Clients are made here: what they cannot reach is an answer's matter, not the start's.
        app.state.values = ValueClient(settings)
        app.state.store = RedisStore(settings.store)
        reading = asyncio.create_task(app.state.updates.run())
        try:
            yield
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            await app.state.store.close()
            await run_in_threadpool(app.state.values.close)

    app = FastAPI(
        title="Livevalue",
        version=__version__,
        description="What every user is worth, kept current while events arrive.",
        docs_url=None,  # FastAPI's pages load scripts from a CDN; ours are in static/
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.updates = Updates(settings.kafka)
    app.state.heartbeat_s = heartbeat_s
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    app.add_middleware(Guard, token=token, loopback=is_loopback(settings.serve.host))
    app.add_exception_handler(FeatureStoreError, _away)
    app.add_exception_handler(StreamsError, _away)
    app.add_exception_handler(TooMany, _too_many)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    return app


@router.get(
    "/v1/users/{user:path}",
    tags=["values"],
    responses={
        200: {"model": UserValue, "description": "The document"},
        404: {"model": Problem, "description": "No event of this user has been folded"},
        **_ASKED,
    },
)
def value_of_a_user(
    request: Request,
    user: str,
    at: Annotated[
        str | None,
        Query(description="2011-09-10 or 2011-09-10T12:00:00Z: the value if silent until then"),
    ] = None,
) -> Response:
    """The value now, or at a time.

    `expected` and `p_active` follow the silence curve. Quantiles are those last published;
    a value read at another time has none.
    """
    values: ValueClient = request.app.state.values
    found = values.get(user, None if at is None else _time(at))
    if found is None:
        return said(
            404,
            "unknown_user",
            f"no value is known of {user!r}: no event of theirs was folded yet, or none since they"
            " were erased",
        )
    return reply(found)


@router.get(
    "/v1/top",
    tags=["values"],
    responses={200: {"model": list[UserValue], "description": "Highest first"}, **_ASKED},
)
def highest_users(
    request: Request,
    n: Annotated[int, Query(ge=1, le=_MOST, description="how many")] = 20,
) -> Response:
    """The users of the highest headline value, as last published."""
    values: ValueClient = request.app.state.values
    return reply(values.top(n))


@router.get(
    "/v1/updates",
    tags=["updates"],
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Events until you hang up"},
        **_ASKED,
    },
)
async def updates(
    request: Request,
    user: Annotated[
        str | None, Query(min_length=1, max_length=256, description="only of this user")
    ] = None,
) -> Response:
    """Each update as it is published, from now on, as server-sent events.

    `update` carries a document, `erased` a user that is gone. `lost` says how many updates a
    client missed that read too slowly; `away` and `back` tell of the broker.
    """
    source: Updates = request.app.state.updates
    source.check()
    return Stream(source, user, request.app.state.heartbeat_s)


@router.get("/v1/meta", tags=["values"], responses=_AWAY)
async def meta(request: Request) -> Response:
    """What the deployment says of itself, and the time that it counts as now."""
    held = await _meta(request)
    values: ValueClient = request.app.state.values
    now = await run_in_threadpool(values.now_ms)
    shown = {**asdict(held), "now": times.text(now), "version": __version__}
    del shown["extra"]
    return reply(shown)


@router.get("/livez", tags=["probes"])
async def livez() -> Response:
    """The process answers: restart it where it does not."""
    return reply({"status": "ok"})


@router.get("/readyz", tags=["probes"], responses=_AWAY)
async def readyz(request: Request) -> Response:
    """Redis holds values and Kafka answers: send traffic."""
    source: Updates = request.app.state.updates
    troubles = {"kafka": source.trouble, "redis": ""}
    try:
        await _meta(request)
    except FeatureStoreError as error:
        troubles["redis"] = str(error)
    if any(troubles.values()):
        return said(503, "unavailable", "; ".join(why for why in troubles.values() if why))
    return reply({"status": "ok", "clients": source.clients})


@router.get("/", include_in_schema=False)
async def console() -> Response:
    """Values as they move, for people."""
    return FileResponse(_STATIC / "console.html")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The interface for people, drawn from /openapi.json."""
    return FileResponse(_STATIC / "docs.html")


async def _meta(request: Request) -> Any:
    store: RedisStore = request.app.state.store
    held = await store.meta()
    if held is None:
        raise StoreError(
            "there are no values yet: start a worker (`livevalue run`), or check "
            "LIVEVALUE_STORE__URL"
        )
    return held


def _time(text: str) -> datetime:
    # A "+" that was not escaped arrives as a space.
    mended = text.replace(" ", "+") if "T" in text else text
    try:
        when = datetime.fromisoformat(mended)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        times.of(when)
    except (ValueError, OverflowError):
        raise HTTPException(
            422, f"at={text[:40]!r} is no time: write 2011-09-10 or 2011-09-10T12:00:00Z"
        ) from None
    return when


async def _away(request: Request, error: Exception) -> Response:
    return said(503, "unavailable", str(error), {"Retry-After": "2"})


async def _too_many(request: Request, error: Exception) -> Response:
    return said(
        503,
        "too_many_clients",
        f"{CLIENTS} clients listen already: start another `livevalue serve`",
        {"Retry-After": "30"},
    )


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = first["loc"][-1] if first["loc"] else "request"
    return said(422, "invalid_request", f"{name}: {first['msg']}")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "wrong_method", 422: "invalid_request"}
    known = "no such page; /docs lists what there is" if error.status_code == 404 else error.detail
    return said(error.status_code, codes.get(error.status_code, "refused"), known, error.headers)
