"""Where a worker's time goes: CPU time by part, of the pipeline in this process.

    python -m benchmarks.parts [--users N] [--batch N] [--redis URL]

Codec and pipeline run as in the worker, over the memory store (or a Redis), without Kafka and
asyncio around them. Each part is a function that the pipeline calls; what is not inside one of
them is "between".
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import SecretStr

from benchmarks import load, throughput
from benchmarks.bench import PARTITIONS, bundled
from featurestore.backends.memory import MemoryStore
from featurestore.backends.redis import RedisStore
from featurestore.settings import StoreSettings
from featurestore.state import States
from featurestore.store import FeatureStore
from scoring import inputs
from scoring.scorer import Scorer
from streams import pipeline
from streams.codec import Codec
from streams.pipeline import Pipeline, Positions
from streams.settings import KafkaSettings, Settings


@dataclass(slots=True)
class Record:
    """One record, as an aiokafka consumer gives it."""

    offset: int
    timestamp: int
    key: bytes
    value: bytes
    headers: tuple[()] = ()


class Parts:
    """CPU seconds by part; a part inside another one is not counted in the outer."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[float] = []

    def clear(self) -> None:
        """Begin anew."""
        self.seconds.clear()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside as `name`."""
        began = time.process_time()
        self._open.append(0.0)
        try:
            yield
        finally:
            spent = time.process_time() - began
            inner = self._open.pop()
            if self._open:
                self._open[-1] += spent
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - inner

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Let calls of `owner.name` count as `part`."""
        inner: Callable[..., Any] = getattr(owner, name)
        timer = self.part

        if asyncio.iscoroutinefunction(inner):

            async def waited(*args: Any, **more: Any) -> Any:
                with timer(part):
                    return await inner(*args, **more)

            setattr(owner, name, waited)
            return

        def called(*args: Any, **more: Any) -> Any:
            with timer(part):
                return inner(*args, **more)

        setattr(owner, name, called)


def observe(pipe: Pipeline) -> Parts:
    """Let every stage of `pipe` be counted. The process is of no other use afterwards."""
    parts = Parts()
    served = pipe.scorer.generation.model
    parts.wrap(pipe.store, "load", "store: load")
    parts.wrap(pipe.store, "commit", "store: commit")
    parts.wrap(States, "decode", "state: decode")
    parts.wrap(States, "encode", "state: encode")
    parts.wrap(States, "select", "state: select")
    parts.wrap(pipeline, "fold", "fold")
    parts.wrap(inputs, "encode", "features")
    parts.wrap(served, "advance", "model: advance")
    parts.wrap(served, "predict", "model: predict")
    parts.wrap(pipe.scorer, "unpack", "carry: unpack")
    parts.wrap(pipe.scorer, "pack", "carry: pack")
    parts.wrap(pipe.documents, "build", "documents")
    return parts


async def _run(users: int, batch: int, steps: int, url: str) -> None:
    settings = Settings(
        kafka=KafkaSettings(mixed="events", partitions=1),
        store=StoreSettings(url=SecretStr(url)) if url else StoreSettings(),
    )
    generation = bundled(settings)
    store: FeatureStore = RedisStore(settings.store, name="parts") if url else MemoryStore("parts")
    codec = Codec(settings)
    pipe = Pipeline(store, Scorer(generation, settings.model, settings.features), settings)
    parts = observe(pipe)
    token = (await store.claim(0)).token
    sources = len(settings.kafka.sources)
    mine = max(1, users // PARTITIONS)
    now = int(time.time() * 1000)
    made = load.events(
        batch * steps, mine, now - batch * steps * throughput.USER_GAP_MS // mine,
        throughput.USER_GAP_MS / mine, seed=1,
    )  # fmt: skip
    records = [Record(n, now, user.encode(), body) for n, (_, user, body) in enumerate(made)]
    mark, total, written = None, 0, 0
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    began = 0.0
    for step in range(steps):
        if step == steps // 2:
            parts.clear()
            total = written = 0
            began = time.process_time()
        chunk = records[step * batch : (step + 1) * batch]
        with parts.part("codec"):
            decoded = codec.decode(0, 0, chunk)
        after = Positions((chunk[-1].offset + 1,) + (0,) * (sources - 1), ("",) * sources, "log",
                          (False,) + (True,) * (sources - 1))  # fmt: skip
        with parts.part("between"):
            done = await pipe.process(
                0, token, mark, after, decoded.batch, decoded.rejected, capped=False
            )
        if done.outcome != "OK" or decoded.rejected:
            raise RuntimeError(f"{done.outcome}, {decoded.rejected[:2]}")
        mark = done.watermark
        total += len(chunk)
        written += len(done.updates)
    whole = time.process_time() - began
    print(f"{total:,} events, {written / total:.2f} users an event; CPU time:")
    print(f"  {'part':<18}{'us an event':>12}{'us a user':>12}")
    for name, seconds in sorted(parts.seconds.items(), key=lambda item: -item[1]):
        print(f"  {name:<18}{seconds / total * 1e6:12.2f}{seconds / written * 1e6:12.2f}")
    print(f"  {'all':<18}{whole / total * 1e6:12.2f}{whole / written * 1e6:12.2f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=3500)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--redis", default="")
    chosen = parser.parse_args()
    np.seterr(all="raise", under="ignore")
    asyncio.run(_run(chosen.users, chosen.batch, chosen.steps, chosen.redis))


if __name__ == "__main__":
    main()
