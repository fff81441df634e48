"""`retrain`, `generations`, `promote`, `rollback` as a person runs them, beside a live worker."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is in the extra `train`")

from livevalue.embedded import Stack
from scoring.retraining.settings import RetrainSettings
from scoring.settings import TrainingSettings
from streams.settings import Settings
from streams.stores import Stores
from tests.e2e.deployment import Deployment, environment
from tests.livevalue.asking import Ask, ask
from tests.parity.nasty import Sent
from tests.parity.onstack import command, send, shaped, swept
from tests.scoring.shoplog import shop

__all__ = ["ask"]

USERS = 600
# Enough to be better than the prior on such orders.
QUICK = TrainingSettings(epochs=12, width=8, rate=5e-3, users_per_batch=128)


def orders(days: int) -> list[Sent]:
    """A shop's orders as records, each stamped with its own time."""
    user, time_ms, micro = shop(USERS, days)
    log = []
    for n, (who, when, worth) in enumerate(
        sorted(
            zip(user.tolist(), time_ms.tolist(), micro.tolist(), strict=True), key=lambda r: r[1]
        )
    ):
        event = {
            "type": "purchase",
            "event_id": f"o{n}",
            "user_id": f"u{who}",
            "event_time": when,
            "amount": f"{worth / 1e6:.2f}",
        }
        if round(worth / 1e6, 2):
            log.append(Sent("purchase", f"u{who}".encode(), json.dumps(event).encode(), when))
    return log


@pytest.mark.timeout(300)
def test_a_retrained_generation_comes_to_serve_and_goes_again(
    stack: Stack, topic_prefix: str, tmp_path: Path, ask: Ask
) -> None:
    settings = shaped(stack, topic_prefix, mixed=True, partitions=2)
    settings = settings.model_copy(
        update={"training": QUICK, "retrain": RetrainSettings(origins=1)}
    )

    def retrain(*words: str, code: int = 0) -> dict[str, Any]:
        """In this process, which has loaded torch: what it trains and says is as by the command."""
        said = ask("retrain", "kafka", *words, "--json", "-", **environment(settings))
        assert said.code == code, said
        if not said.out.startswith("{"):
            (line,) = said.err.strip().splitlines()
            return {"said": line}
        found: dict[str, Any] = json.loads(said.out)
        return found

    log = orders(240)
    begin = log[0].timestamp
    short = [sent for sent in log if sent.timestamp < begin + 15 * 86_400_000]
    with Deployment(settings, tmp_path) as deployment:
        send(deployment, short)
        deployment.start()
        deployment.settle()
        first = command(deployment, "generations", "ls")["generations"]
        assert [(g["family"], g["champion"]) for g in first] == [("prior", True)]
        prior = first[0]["id"]
        early = retrain(code=1)
        assert not early["promoted"]
        assert early["generation"] == prior
        assert "1997" in early["reason"]  # from when on there are labels

        send(deployment, log[len(short) :])
        deployment.settle()
        made = command(deployment, "retrain", "kafka")
        assert made["promoted"], made["reason"]
        swept(deployment, made["generation"])
        assert command(deployment, "verify")["different"] == 0
        still = retrain("--if-drifted")
        assert (still["generation"], still["drifted"]) == (made["generation"], False), still
        assert 0 < still["psi"] < 0.25 and "have not drifted" in still["reason"]
        told = command(deployment, "audit", "--drift")["drift"]
        assert told["psi"] == still["psi"]
        # The same bounds, of those trained on at the newest cut-off and of those who live now.
        then, now = made["metrics"]["outliers"], told["outliers"]
        bounds = command(deployment, "generations", "show", made["generation"])["params"]["bounds"]
        assert then.keys() == now.keys() and then["users"] <= now["users"] <= USERS
        assert set(now["columns"]) <= set(bounds)
        moved = retrain("--if-drifted", "--psi", "0")
        assert moved["drifted"] and "nothing has changed" in moved["reason"]
        assert moved["generation"] == made["generation"]

        shown = command(deployment, "generations", "show", made["generation"][:12])
        assert shown["family"] == "mingru"
        assert shown["cost"]["carry_bytes"] == 2 * 4 * shown["params"]["width"]
        assert shown["cost"]["parameters"] == shown["params"]["parameters"] > 1000
        assert "family is called 'gnu'" in retrain("--family", "gnu", code=1)["said"]
        refused = retrain("--family", "dnn", "--publish-only", code=1)["said"]
        assert "'dnn' does not take what is set of training.width (mingru, gru, " in refused
        other = retrain("--family", "gru", "--publish-only")
        found = command(deployment, "generations", "show", other["generation"])
        assert (found["family"], found["cost"]["carry_bytes"]) == ("gru", 4 * QUICK.width)
        back = command(deployment, "rollback")
        assert (back["generation"], back["store"]) == (prior, "main")
        swept(deployment, prior)
        assert "no earlier champion" in command(deployment, "rollback", code=1)["said"]
        there = command(deployment, "promote", made["generation"][:12])
        assert there["before"] == prior
        swept(deployment, made["generation"])
        assert command(deployment, "verify")["different"] == 0
        assert "names 0 generations" in command(deployment, "promote", "0" * 12, code=1)["said"]
        # The files of what serves are damaged: another can be promoted all the same.
        asyncio.run(_damage(settings, made["generation"]))
        assert "cannot be loaded, so it stays" in retrain(code=1)["said"]
        assert command(deployment, "promote", prior)["before"] == made["generation"]
        swept(deployment, prior)


async def _damage(settings: Settings, generation: str) -> None:
    stores = Stores(settings)
    try:
        await stores.store().put_blob(f"generations/{generation}/manifest.json", b"{}")
    finally:
        await stores.close()
