"""The law of silence on the real sets: p95 of what readers are told, off the model asked again.

    python -m benchmarks.silence [SET…]

Prints a line a set, generation and reader (scoring.judging.silence). Generations: the prior, and
the net that ships with the package, which but for online_retail has never seen such a set. With the
settings' knots; LIVEVALUE_MODEL__SILENCE_DAYS tries others. Two minutes, and several more for
bitcoin_otc, whose users are silent for years.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks import sets
from livevalue import running
from livevalue.demo.bundled import bundled
from scoring.generation import prior
from scoring.judging.silence import Reader, silences

READERS: tuple[Reader, ...] = ("live", "alone")


def main() -> None:
    """Print the table."""
    model = running.settings().model
    names = [f"d{days}" for days in model.horizons_days]
    print(f"{'set':<14}{'family':<8}{'reader':<7}{'user-days':>10}" + "".join(
        f"{name:>8}" for name in names))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or sets.NAMES:
            log, how = sets.log(name, Path(folder))
            for made in (prior(model), bundled()):
                found = silences(log, made, model, how.features, how.kafka.sources, most=6000)
                for reader in READERS:
                    figures = "".join(f"{100 * p:7.1f}%" for p in found.p95(reader))
                    head = f"{name:<14}{made.manifest.family:<8}{reader:<7}"
                    print(f"{head}{len(found.days):>10,}{figures}", flush=True)


if __name__ == "__main__":
    main()
