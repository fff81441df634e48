"""Answers as JSON: documents, and errors with what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response


def reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON with every letter as it is."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes "?".
    body = text.encode("utf-8", errors="replace")
    return Response(body, status, dict(headers or {}), "application/json")


def said(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An error: `code` for programs, `message` for people."""
    return reply({"error": code, "message": message}, status, headers)
