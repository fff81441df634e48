"""The load of the benchmarks: mixed events of about 185 bytes, users drawn evenly, a fixed seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

ACTIONS = ("cart_add", "wishlist", "like", "play", "share")


def events(count: int, users: int, start_ms: int, step_ms: float, seed: int) -> Iterator[
    tuple[str, str, bytes]
]:
    """(type, user id, JSON) of `count` events, one each `step_ms` of event time."""
    rng = random.Random(seed)
    for number in range(count):
        kind = rng.choices(("browse", "purchase", "interaction"), (60, 15, 25))[0]
        user = f"user-{rng.randrange(users):06d}"
        body: dict[str, object] = {
            "type": kind,
            "event_id": f"{seed:04d}-{number:010d}",
            "user_id": user,
            "event_time": int(start_ms + number * step_ms),
            "item_id": f"item-{rng.randrange(5000):05d}",
            "category": f"category-{rng.randrange(40):02d}",
        }
        if kind == "purchase":
            body |= {"amount": f"{rng.lognormvariate(3, 1):.2f}", "currency": "GBP"}
        elif kind == "interaction":
            body |= {"action": rng.choice(ACTIONS)}
        else:
            body |= {"page": "product", "dwell_ms": rng.randrange(500, 60_000)}
        yield kind, user, json.dumps(body, separators=(",", ":")).encode()
