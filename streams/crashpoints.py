"""Named places of the commit protocol at which a test lets the process die, as kill -9 would.

A test arms one by the environment: LIVEVALUE_CRASH="after_commit:3" kills the process when that
place is passed for the third time (without a number: the first). Not armed, `passing` is a
function that does nothing: the choice is made once, at the start of a worker or a builder, and a
place costs one call of it, a dozen a batch. An unknown name is refused at start with the names
that there are; a worker that is armed says so as a warning, and `livevalue doctor` too.

Each place stands where a death would hurt in another way: before or after what cannot be taken
back; tests/streams/test_crashpoints.py looks whether it does. tests/e2e/test_crashes.py passes each
once, `make crashes` each five times.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping

from streams.errors import WrongSetting

VARIABLE = "LIVEVALUE_CRASH"

POINTS: dict[str, str] = {
    "after_load": "states are read, nothing is folded",
    "after_compute": "the batch is folded and scored, nothing is written",
    "before_commit": "the commit is put together, not sent",
    "after_commit": "committed, and nobody in this process knows it yet",
    "before_publish": "committed and queued, no transaction begun",
    "in_transaction": "documents and letters sent, the transaction open",
    "before_trim": "the transaction is committed, the outbox names all of it still",
    "after_trim": "published and trimmed, nobody was told",
    "before_ack": "committed, the deliveries are not acknowledged",
    "claim_token": "a new token is written, no producer yet",
    "claim_producer": "the producer has fenced its forerunner, the published record is not read",
    "claim_published": "the published record is read, nothing is reconciled",
    "make_good_page": "a roll-back is being made good, a page is committed and not published",
    "takeover_claimed": "the other store is claimed, nothing of ours is folded into it",
    "before_flip": "the other store stands where ours does",
    "after_flip": "the other store serves, its partition is not claimed anew",
    "sweep_page": "a page of the sweep is committed and not queued",
    "backfill_step": "a builder has committed one of its steps",
}


def _nothing(here: str) -> None:
    """Not armed."""


def armed(environment: Mapping[str, str]) -> Callable[[str], None]:
    """What is called at each place, by the environment.

    Raises WrongSetting for a place that does not exist and a count that is none.

    >>> armed({})("after_load")
    """
    text = environment.get(VARIABLE, "")
    if not text:
        return _nothing
    name, _, count = text.partition(":")
    left = int(count or 1) if (count or "1").isdecimal() else 0
    if name not in POINTS or left < 1:
        raise WrongSetting(
            f"{VARIABLE}={text!r}: unset it, or name one of {', '.join(POINTS)}, "
            "with :N for the N-th time"
        )

    def passed(here: str) -> None:
        nonlocal left
        if here == name:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return passed


passing: Callable[[str], None] = _nothing


def arm(environment: Mapping[str, str] = os.environ) -> str:
    """Arm this process as the environment says; -> what is armed, "" where nothing is.

    Raises WrongSetting as `armed` does.
    """
    global passing
    passing = armed(environment)
    return environment.get(VARIABLE, "")
