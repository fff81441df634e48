"""Makes the demo's bundled generation: `python -m livevalue.demo.train`.

It is trained on the orders of the first 182 days of the shipped log, 2010-12-01 to 2011-05-31, and
on nothing later: cut-offs are chosen so that every label's window ends by then.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from livevalue.demo.bundled import FOLDER
from livevalue.demo.orders import DAY_MS, load_orders, write_history
from livevalue.sources import FileOptions, Source
from scoring.generation import dump
from scoring.registry import Registry
from scoring.retraining.retrain import retrain
from streams.settings import Settings

DAYS = 182


def main() -> None:
    """Train and write the files into the package's data folder."""
    orders = load_orders()
    first_day = orders.times_ms[0] - orders.times_ms[0] % DAY_MS
    settings = Settings()
    with tempfile.TemporaryDirectory() as scratch:
        history = Path(scratch) / "history.parquet"
        count = write_history(history, first_day + DAYS * DAY_MS)
        registry = Registry.at(str(Path(scratch) / "registry"))
        source = [str(history)]
        report = asyncio.run(
            retrain(
                lambda: Source(source, settings, FileOptions()).batches(),
                settings.model,
                settings.features,
                settings.kafka.sources,
                registry,
                unit=settings.value.currency,
            )
        )
        made = asyncio.run(registry.get(report.generation))
    place = Path(__file__).parent.parent / "data" / FOLDER
    place.mkdir(exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    for name, data in dump(made).items():
        (place / name).write_bytes(data)
    said = f"{count:,} orders -> generation {made.id[:12]} ({made.manifest.family})"
    print(said, report.metrics, report.reason, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
