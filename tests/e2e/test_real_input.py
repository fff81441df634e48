"""Real logs through Kafka: 4,321 shop events of every kind, and a year of a shop's orders."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from featurestore.partitioner import partition
from featurestore.settings import ValueRule, ValueSettings
from livevalue.embedded import Stack
from livevalue.jobs.explaining import explain
from livevalue.jobs.replaying import digest_live, replay_source
from livevalue.sending import send_all
from livevalue.sources import FileOptions
from streams.settings import Settings
from tests.e2e.deployment import ROOT, Deployment, deployment_settings

_databases = count(0)
_TAOBAO = {
    "pv": {"type": "browse"},
    "cart": {"type": "interaction", "action": "cart_add"},
    "fav": {"type": "interaction", "action": "wishlist"},
    # A purchase has an amount by contract; what was paid is not known here.
    "buy": {"type": "purchase", "amount": "1"},
}


@pytest.fixture
def settings(stack: Stack, topic_prefix: str) -> Settings:
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{12 - next(_databases)}"
    return deployment_settings(stack.bootstrap, url, topic_prefix)


@pytest.fixture
def through(settings: Settings, tmp_path: Path) -> Iterator[Any]:
    """Plays a file through a worker, with other settings if wanted; -> the deployment."""
    open_: list[Deployment] = []

    def play(path: Path, more: Mapping[str, Any] | None = None) -> Deployment:
        deployment = Deployment(settings.model_copy(update=dict(more or {})), tmp_path)
        open_.append(deployment.__enter__())
        log = FileOptions().open([path], deployment.settings)
        deployment.sent = send_all(deployment.settings, log.records())
        deployment.start()
        deployment.settle()
        return deployment

    yield play
    for deployment in open_:
        deployment.__exit__()


def _published(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """Each user's last document on `scores`, which must be the one in Redis too."""
    # Users who are silent by the log's time would be published again and again meanwhile.
    assert deployment.workers["w0"].stop() == 0
    kafka = deployment.settings.kafka
    last = {r.key.decode(): r.value for r in deployment.read(kafka.scores)}
    homes = {user: partition(user, kafka.partitions, kafka.partitioner) for user in last}
    held: Any = deployment.redis.mget([f"lv:{{{p}}}:v:{user}" for user, p in homes.items()])
    assert dict(zip(last, held, strict=True)) == last
    return {user: json.loads(value) for user, value in last.items()}


def _replayed_alike(deployment: Deployment) -> dict[str, Any]:
    """Digest of the live store, which replay of the topics must meet."""
    live = asyncio.run(digest_live(deployment.settings))
    again = asyncio.run(replay_source(deployment.settings, ["kafka"], FileOptions()))
    assert (again["digest"], again["users"], again["applied"]) == (
        live["digest"],
        live["users"],
        live["applied"],
    )
    return again


def test_browse_cart_favourite_and_buy_of_taobao_become_values(
    data_dir: Path, tmp_path: Path, through: Any
) -> None:
    events, bought = [], Counter[str]()
    with (data_dir / "taobao_micro" / "UserBehavior.csv").open() as file:
        for number, (user, item, category, what, seconds) in enumerate(csv.reader(file)):
            bought[user] += what == "buy"
            events.append(
                {
                    "event_id": str(number),
                    "user_id": user,
                    "event_time": int(seconds) * 1000,
                    "item_id": item,
                    "category": category,
                }
                | _TAOBAO[what]
            )
    assert len(events) == 4321
    path = tmp_path / "taobao.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))

    # A purchase counts as one.
    one = ValueSettings(kind="count", rules=(ValueRule(type="purchase", field="one"),))
    deployment = through(path, {"value": one})
    found = _published(deployment)
    assert deployment.sent == 4321
    assert {user: d["history"]["spent"] for user, d in found.items()} == dict(bought)
    facts = _replayed_alike(deployment)
    assert (facts["users"], facts["applied"], facts["rejected"]) == (43, 4321, 0)

    # And each recent event of a user is told by what it does.
    user = max(bought, key=lambda user: bought[user])
    told = asyncio.run(explain(deployment.settings, user))
    assert told["as_of"] == found[user]["as_of"]
    for name, value in told["values"].items():
        assert value == pytest.approx(found[user]["values"][name]["expected"], rel=1e-4)
    assert len(told["reasons"]) == told["events"] - told["older"] > 0
    moved = [abs(r["change"][told["headline"]]) for r in told["reasons"]]
    assert moved == pytest.approx(sorted(moved, reverse=True))


def test_a_year_of_orders_and_refunds_becomes_values_to_the_penny(
    data_dir: Path, through: Any
) -> None:
    spent: dict[str, Decimal] = {}
    with gzip.open(data_dir / "online_retail" / "online_retail.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            user = row["CustomerID"]
            if user and user != "NA":
                amount = Decimal(row["Quantity"]) * Decimal(row["UnitPrice"])
                spent[user] = spent.get(user, Decimal(0)) + amount
    shipped = ROOT / "livevalue" / "data" / "online_retail.parquet"
    rows = pq.read_table(shipped).num_rows

    deployment = through(shipped)
    found = _published(deployment)
    # Only invoices of nothing are left out of the shipped log.
    assert {u: spent[u] for u in spent.keys() - found.keys()} == dict.fromkeys(
        spent.keys() - found.keys(), Decimal(0)
    )
    assert len(found) > 4300
    exact = {u: Decimal(str(d["history"]["spent"])) for u, d in found.items()}
    wrong = {u: (exact[u], spent[u]) for u in found if exact[u] != spent[u]}
    assert not wrong
    facts = _replayed_alike(deployment)
    assert (facts["users"], facts["applied"], facts["rejected"]) == (len(found), rows, 0)
