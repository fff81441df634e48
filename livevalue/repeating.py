"""`--every`: a plain job again and again, for a compose file; schedulers call the job itself."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable

import typer

from livevalue.stopping import stopped_by_signal

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """`24h` as seconds.

    >>> seconds("24h"), seconds("90s")
    (86400.0, 90.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not found or float(found[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no period: write 90s, 30m, 24h or 7d")
    return float(found[1]) * _UNITS[found[2]]


def repeatedly(job: Callable[[], None], every: str) -> None:
    """Run `job` once, or with `every` until SIGTERM; a run that fails is said and tried again."""
    if not every:
        job()
        return
    period = seconds(every)
    with stopped_by_signal() as stopped:
        while True:
            began = time.monotonic()
            try:
                job()
            except Exception as error:  # noqa: BLE001  the next run may find the broker back
                print(f"livevalue: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if stopped.wait(max(0.0, period - (time.monotonic() - began))):
                return
