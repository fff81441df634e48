"""The real sets of `shared/data` as event logs, each with the settings that say what is value.

    python -m benchmarks.sets FOLDER [NAME…]

writes FOLDER/NAME.jsonl, which every command reads. What counts as value, by set:

| set | events | value |
|---|---|---|
| cdnow | orders | what was paid |
| online_retail | orders and cancelled orders, as shipped with the package | what was paid, net |
| taobao_micro | browse, cart, favourite, buy | one a purchase: there are no prices |
| collegemsg | messages of the sender | one a message |
| bitcoin_otc | ratings by the rater | one a rating |

The folder is LIVEVALUE_DATA, or `shared/data` beside the project.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featurestore.settings import ValueRule, ValueSettings
from livevalue.sources import Source
from scoring.judging.history import Log
from streams.settings import Settings

Event = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "livevalue" / "data" / "online_retail.parquet"


def data_dir() -> Path:
    """Where the sets are."""
    return Path(os.environ.get("LIVEVALUE_DATA") or ROOT.parent / "shared" / "data")


def settings(name: str) -> Settings:
    """The settings under which a set's events are worth something."""
    return Settings(value=_SETS[name][1])


def _cdnow(folder: Path) -> Iterator[Event]:
    for number, line in enumerate((folder / "CDNOW_master.txt").read_text().splitlines()):
        words = line.split()
        if words and words[0].isdigit():
            day = datetime.strptime(words[1], "%Y%m%d").replace(tzinfo=UTC)
            what = {"type": "purchase", "amount": words[3]}
            yield what | _event(number, words[0], day.timestamp())


def _taobao(folder: Path) -> Iterator[Event]:
    kinds: dict[str, Event] = {
        "pv": {"type": "browse"},
        "cart": {"type": "interaction", "action": "cart_add"},
        "fav": {"type": "interaction", "action": "wishlist"},
        # a purchase has an amount by contract; what was paid is not known
        "buy": {"type": "purchase", "amount": "1"},
    }
    with (folder / "UserBehavior.csv").open() as file:
        for number, (user, item, category, what, seconds) in enumerate(csv.reader(file)):
            about = {"item_id": item, "category": category}
            yield kinds[what] | about | _event(number, user, float(seconds))


def _collegemsg(folder: Path) -> Iterator[Event]:
    for number, line in enumerate((folder / "CollegeMsg.txt").read_text().splitlines()[1:]):
        sender, receiver, seconds = line.split()
        what = {"type": "interaction", "action": "message", "target_user_id": receiver}
        yield what | _event(number, sender, float(seconds))


def _bitcoin(folder: Path) -> Iterator[Event]:
    with (folder / "soc-sign-bitcoinotc.csv").open() as file:
        for number, row in enumerate(csv.DictReader(file)):
            what = {"type": "interaction", "action": "rate", "target_user_id": row["target"]}
            what["rating"] = row["weight"]
            yield what | _event(number, row["source"], float(row["timestamp"]))


def _event(number: int, user: str, seconds: float) -> Event:
    return {"event_id": str(number), "user_id": user, "event_time": round(seconds * 1000)}


def _counted(kind: str, action: str | None = None) -> ValueSettings:
    rule = ValueRule.model_validate({"type": kind, "action": action, "field": "one"})
    return ValueSettings(kind="count", currency="events", rules=(rule,))


_SETS: dict[str, tuple[Callable[[Path], Iterator[Event]] | None, ValueSettings]] = {
    "cdnow": (_cdnow, ValueSettings(currency="USD")),
    "online_retail": (None, ValueSettings()),
    "taobao_micro": (_taobao, _counted("purchase")),
    "collegemsg": (_collegemsg, _counted("interaction", "message")),
    "bitcoin_otc": (_bitcoin, _counted("interaction", "rate")),
}
NAMES = tuple(_SETS)


def path(name: str, folder: Path) -> Path:
    """A set as a file that every command reads, written into `folder` if it is not there."""
    make = _SETS[name][0]
    if make is None:
        return SHIPPED
    made = folder / f"{name}.jsonl"
    if not made.exists():
        lines = (json.dumps(event) + "\n" for event in make(data_dir() / name))
        made.write_text("".join(lines))
    return made


def log(name: str, folder: Path) -> tuple[Log, Settings]:
    """A set as decoded batches, and its settings."""
    how = settings(name)
    return list(Source([str(path(name, folder))], how).batches()), how


def main() -> None:
    """Write the files."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or NAMES:
        print(path(name, folder))


if __name__ == "__main__":
    main()
