"""Bad input to `retrain` and `promote`: one clear line, exit code 1, and the champion stays.

No broker and no Redis: generations are kept in a folder, and what is refused asks for no store.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore import times
from scoring.generation import Generation, Manifest, build, dump, prior
from scoring.registry import Registry
from scoring.settings import ModelSettings
from tests.forks import run

ROOT = Path(__file__).resolve().parents[2]
START_MS = times.parse("2024-01-01T00:00:00Z")
DAY_MS = 86_400_000


@pytest.fixture
def champion(tmp_path: Path) -> str:
    """A generation that serves; the commands find it in the folder `registry`."""
    return asyncio.run(_published(tmp_path, prior(ModelSettings()), promote=True))


async def _published(folder: Path, made: Generation, *, promote: bool = False) -> str:
    registry = Registry.at(str(folder / "registry"))
    await registry.publish(made)
    if promote:
        await registry.promote(made.id)
    return made.id


def _serves(folder: Path) -> str | None:
    return asyncio.run(Registry.at(str(folder / "registry")).champion())


def _command(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LIVEVALUE_MODEL__REGISTRY": str(folder / "registry"),
        # Nothing listens there: a refusal that asked for a store would say so instead.
        "LIVEVALUE_STORE__URL": "redis://127.0.0.1:1/0",
        **more,
    }
    return run(words, cwd=folder, env=env, timeout=60)


def _orders(
    users: int = 60, days: int = 200, each: int = 8, currency: str = "GBP"
) -> list[dict[str, Any]]:
    """Orders of random days and amounts."""
    r = np.random.default_rng(0)
    return [
        {
            "type": "purchase",
            "event_id": f"{user}-{n}",
            "user_id": f"u{user}",
            "event_time": START_MS + int(r.uniform(0, days) * DAY_MS),
            "amount": round(float(r.lognormal(3, 1)) + 0.5, 2),
            "currency": currency,
        }
        for user in range(users)
        for n in range(each)
    ]


def _browsed(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = ("event_id", "user_id", "event_time")
    return [{"type": "browse", **{name: row[name] for name in kept}} for row in rows]


def _mixed() -> list[dict[str, Any]]:
    rows = _orders()
    return [{**row, "currency": "USD" if n % 3 == 0 else "GBP"} for n, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no event of a known user"),
        (_orders(days=12), "labels exist of 7 days from 2024-01-18"),
        (_orders(days=60), "there are 0 for 90 days: give a longer log"),
        (_orders(days=60), "; labels exist of 90 days from 2024-04-12 on"),
        (_orders(users=3, each=6), "there are 3 for 7 days, 3 for 30 days, 3 for 90 days"),
        (_orders(users=30, each=2), "increments with value among the mature labels"),
        (_browsed(_orders()), "holds no purchase"),
        (_orders(users=1, each=400), "one user alone"),
        ([{**row, "amount": 10} for row in _orders()], "all 480 orders have the same value, 10"),
        ([{**row, "amount": -row["amount"]} for row in _orders()], "all 480 amounts are refunds"),
        ([{**row, "amount": -3} for row in _orders()[:1]], "the only amount is a refund, there"),
        (_mixed(), "the log mixes currencies: 160 of 480 events are in one"),
        (_mixed()[:1], "the log mixes currencies: 1 of 1 event is in one"),
    ],
    ids=[
        *("empty", "short", "short-of-90", "until-when", "few-users", "small"),
        *("browsed", "one-user", "constant", "refunds", "one-refund"),
        *("currencies", "one-foreign"),
    ],
)
def test_a_log_that_teaches_nothing_is_refused_and_the_champion_stays(
    tmp_path: Path, champion: str, rows: list[dict[str, Any]], said: str
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = _command(tmp_path, "retrain", str(log))
    assert done.returncode == 1, done.stderr + done.stdout
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert _serves(tmp_path) == champion


def test_a_retrain_counts_what_it_folded_as_a_replay_does(tmp_path: Path, champion: str) -> None:
    rows = _orders()
    arrived = {"log_time": START_MS + 210 * DAY_MS}
    bad = [
        rows[0],  # again
        {**rows[1], "amount": rows[1]["amount"] + 1},  # other content under one id
        {**rows[2], "event_id": "ahead", "event_time": arrived["log_time"] + DAY_MS},
        {**rows[3], "event_id": "none", "amount": "much"},
    ]
    last = {**rows[4], "event_id": "last", "event_time": arrived["log_time"]}
    looked = {**_browsed(rows[5:6])[0], "event_id": "look", "event_time": arrived["log_time"]}
    late = {**looked, "event_id": "late", "event_time": START_MS}
    log = tmp_path / "log.jsonl"
    everything = [*rows, *({**row, **arrived} for row in (*bad, last, looked, late))]
    log.write_text("".join(json.dumps(row) + "\n" for row in everything))
    quick = {"LIVEVALUE_RETRAIN__ORIGINS": "0", "LIVEVALUE_TRAINING__FAMILY": "linear"}
    words = ("retrain", str(log), "--publish-only", "--json", "found.json")
    done = _command(tmp_path, *words, **quick)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    replayed = json.loads(_command(tmp_path, "replay", str(log), "--json", "-").stdout)
    counts = ("events", "applied", "rejected", "late", "duplicates", "reasons", "first_rejections")
    assert {name: found[name] for name in counts} == {name: replayed[name] for name in counts}
    assert found["late"] == 1
    assert set(found["reasons"]) == {"invalid_field", "conflict", "future", "late"}
    assert found["metrics"]["outliers"]["users"] == 60
    assert "482 applied, 1 duplicate" in done.stdout and "1 conflict" in done.stdout


def test_a_family_that_does_not_exist_is_refused_and_the_champion_stays(
    tmp_path: Path, champion: str
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in _orders()))
    done = _command(tmp_path, "retrain", str(log), LIVEVALUE_TRAINING__FAMILY="crystal")
    assert done.returncode == 1, done.stderr + done.stdout
    (line,) = [line for line in done.stderr.splitlines() if "crystal" in line]
    assert "mingru" in line  # says which there are
    assert _serves(tmp_path) == champion


def test_settings_that_the_family_does_not_take_are_refused_before_the_log_is_read(
    tmp_path: Path, champion: str
) -> None:
    told = {"LIVEVALUE_TRAINING__OPTIMIZER": "sgd", "LIVEVALUE_TRAINING__TEACHERS": '["svr"]'}
    done = _command(tmp_path, "retrain", "nowhere.jsonl", "--family", "gbm", **told)
    assert done.returncode == 1, done.stderr + done.stdout
    (line,) = [line for line in done.stderr.splitlines() if "livevalue: " in line]
    assert "family 'gbm' does not take what is set of training.optimizer (mingru, gru, " in line
    assert "training.teachers (mingru, blend): take it out" in line
    assert _serves(tmp_path) == champion


def _of_another_table() -> Generation:
    made = prior(ModelSettings())
    return _changed(made.manifest.model_copy(update={"features": ("since_dawn",)}))


def _of_other_horizons() -> Generation:
    return prior(ModelSettings(horizons_days=(14, 60), headline="d60"))


def _of_another_unit() -> Generation:
    return _changed(prior(ModelSettings()).manifest.model_copy(update={"unit": "EUR"}))


def _changed(manifest: Manifest) -> Generation:
    files = {name: dump(prior(ModelSettings()))[name] for name in manifest.sha256}
    return build(manifest, files)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (_of_another_table(), "another feature set"),
        (_of_other_horizons(), "it predicts 14, 60 days"),
        (_of_another_unit(), "in EUR, the deployment's unit is GBP"),
    ],
    ids=["features", "horizons", "unit"],
)
def test_a_generation_of_another_deployment_is_not_promoted(
    tmp_path: Path, champion: str, made: Generation, said: str
) -> None:
    foreign = asyncio.run(_published(tmp_path, made))
    done = _command(tmp_path, "promote", foreign[:12])
    assert done.returncode == 1
    assert said in done.stderr
    assert "cannot serve here" in done.stderr
    assert _serves(tmp_path) == champion


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw.replace(b'"prior"', b'"crystal"'), "changed after it was published"),
        (lambda raw: raw[: len(raw) // 2], "not one of this version"),
    ],
    ids=["other-bytes", "torn"],
)
def test_a_damaged_generation_is_not_promoted(
    tmp_path: Path, champion: str, damage: Any, said: str
) -> None:
    made = asyncio.run(_published(tmp_path, _of_another_unit()))
    manifest = tmp_path / "registry" / "generations" / made / "manifest.json"
    raw = manifest.read_bytes()
    assert damage(raw) != raw
    manifest.write_bytes(damage(raw))
    done = _command(tmp_path, "promote", made[:12])
    assert done.returncode == 1
    assert said in done.stderr
    assert _serves(tmp_path) == champion
    listed = _command(tmp_path, "generations", "ls", "--json", "found.json")
    assert listed.returncode == 0, listed.stderr
    shown = json.loads((tmp_path / "found.json").read_text())["generations"]
    assert [one["id"] for one in shown] == [champion, made]
    hurt = said == "not one of this version"
    assert ("damaged" in shown[1], shown[1]["family"] is None) == (hurt, hurt)
    assert (f"generation {made[:12]} is not one of this version" in listed.stdout) is hurt
    gone = _command(tmp_path, "promote", "0" * 12)
    assert gone.returncode == 1
    assert "names 0 generations" in gone.stderr


def test_a_file_that_does_not_match_its_checksum_is_not_promoted(
    tmp_path: Path, champion: str
) -> None:
    from livevalue.demo.bundled import bundled

    made = asyncio.run(_published(tmp_path, bundled()))
    name = next(iter(bundled().manifest.sha256))
    file = tmp_path / "registry" / "generations" / made / name
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    done = _command(tmp_path, "promote", made[:12])
    assert done.returncode == 1
    assert f"{name} does not match its SHA-256" in done.stderr
    assert _serves(tmp_path) == champion


def test_a_champion_that_cannot_be_loaded_stays_until_somebody_says_otherwise(
    tmp_path: Path,
) -> None:
    from livevalue.demo.bundled import bundled

    made = asyncio.run(_published(tmp_path, bundled(), promote=True))
    name = next(iter(bundled().manifest.sha256))
    file = tmp_path / "registry" / "generations" / made / name
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in _orders()))
    quick = {"LIVEVALUE_RETRAIN__ORIGINS": "0", "LIVEVALUE_TRAINING__FAMILY": "linear"}
    done = _command(tmp_path, "retrain", str(log), **quick)
    assert done.returncode == 1, done.stderr + done.stdout
    assert f"the champion {made[:12]} cannot be loaded, so it stays" in done.stderr
    assert f"{name} does not match its SHA-256" in done.stderr
    assert "livevalue promote G" in done.stderr and "fold" not in done.stderr
    done = _command(tmp_path, "retrain", str(log), "--publish-only", **quick)
    assert done.returncode == 0, done.stderr + done.stdout
    assert _serves(tmp_path) == made


@pytest.mark.parametrize("scheme", ["http", "ftp", "s3"])
def test_a_registry_that_cannot_be_used_is_said_in_one_line_without_its_login(
    tmp_path: Path, scheme: str
) -> None:
    url = f"{scheme}://key:hunter2@127.0.0.1:1/x"  # nothing listens there
    for debug in ({}, {"LIVEVALUE_DEBUG": "1"}):
        done = _command(tmp_path, "generations", "ls", LIVEVALUE_MODEL__REGISTRY=url, **debug)
        assert done.returncode == 1
        assert debug or done.stderr.count("\n") == 1, done.stderr
        assert "LIVEVALUE_MODEL__REGISTRY" in done.stderr
        assert "hunter2" not in done.stdout + done.stderr
