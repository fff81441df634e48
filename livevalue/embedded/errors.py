"""The embedded stack has one error: it could not be had, and the message says what to do."""

from __future__ import annotations


class StackError(Exception):
    """The embedded stack cannot start; the first line says what to set or to free.

    Further lines, if any, are the last ones of the server's own log.
    """


class Cancelled(StackError):
    """The start was given up because the caller no longer wants it."""
