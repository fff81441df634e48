"""audit: snapshots of what was served, joined with what came true; and drift of the live users.

Rows are judged by scoring.retraining.audit, bins by scoring.retraining.drift; here snapshots, log
and store are read.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from featurestore import times
from featurestore.fold_settings import FoldSettings
from featurestore.state import States, history
from featurestore.store import FeatureStore
from featurestore.wording import counted
from livevalue.jobs import shadowing, snapshots
from livevalue.jobs.exporting import live_now, live_stores
from livevalue.output import Refused
from livevalue.sources import KAFKA, FileOptions, Source
from scoring.outliers import Outliers
from scoring.retraining import audit as judging
from scoring.retraining import drift as drifting
from scoring.retraining.audit import Row, Thresholds, Truth
from scoring.retraining.shadow import Comparison, Judged, compare
from scoring.scorer import Scorer
from streams.archive import is_archive
from streams.row import split
from streams.settings import Settings
from streams.stores import Stores

_PAGE = 1000
_GAUGES = {
    "users": "Users of the row",
    "ngini": "Ranking: Gini of the values over the Gini of a perfect ranking",
    "ngini_past": "The same for ranking by past spend",
    "spearman": "Rank correlation of value and what came true",
    "bias": "Level: what was expected over what came true, 1 is right",
    "mae": "Mean absolute error, major units",
    "auc": "Chance that an active user had the higher p_active",
    "brier": "Mean squared error of p_active",
    "cover80": "Share of spenders between p10 and p90 of if_active, .8 is right",
}
_ALARMS = ("bias", "cover80", "ngini")


def audit(
    settings: Settings,
    src: Sequence[str],
    options: FileOptions,
    folder: Path,
    thresholds: Thresholds,
    last: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Rows of the newest `last` snapshots of each horizon with a mature label.

    Without a SRC the archive is read and then what the topics hold beyond it.
    """
    files, pairs = snapshots.listed(folder), shadowing.listed(folder)
    if not files and not pairs:
        raise Refused(
            f"there are no snapshots in {folder / snapshots.SERVED}: `livevalue audit --snapshot` "
            "takes one, `livevalue archive --every 1h` one a day; labels come with time"
        )
    known = src or ([str(folder)] if is_archive(folder) else []) + [KAFKA]
    source = Source(known, settings, options)
    folded = FoldSettings.of(settings.features, settings.kafka.sources)
    truth = Truth.of(_told(source.batches(), progress), folded, files=bool(source.files))
    begins_ms = truth.begins_ms
    if begins_ms is None:
        raise Refused(f"there are no events in {' '.join(known)}: name another SRC")
    lateness_ms = int(folded.lateness_ms.max())
    rows: list[Row] = []
    waiting: list[dict[str, Any]] = []
    before: list[str] = []
    erased: set[str] = set()
    judged: dict[int, int] = {}  # horizon -> snapshots
    for file in reversed(files):
        snapshot_ms = snapshots.moment_of(file)
        if snapshot_ms < begins_ms:
            before.append(file.name)
            continue
        mature = []
        for days in snapshots.horizons_of(file):
            from_ms = truth.mature_ms(snapshot_ms, days, lateness_ms)
            if from_ms is not None:
                waiting.append(
                    {
                        "snapshot": times.text(snapshot_ms),
                        "horizon_days": days,
                        "from": times.text(from_ms),
                    }
                )
            elif judged.get(days, 0) < last:
                mature.append(days)
        if not mature:
            continue
        whole = snapshots.read(file)
        served, _ = judging.kept(whole, truth)
        erased.update(set(whole.users) - set(served.users))
        for days in mature:
            value, active = judging.labels(served, truth, days)
            newest = days not in judged
            judged[days] = judged.get(days, 0) + 1
            rows += [
                {**row, "newest": newest}
                for row in judging.judge(served, value, active, days, thresholds)
            ]
    rows.sort(key=lambda row: (row["horizon_days"], row["snapshot"], row["generation"]))
    beside, comparisons = _shadows(pairs, truth, begins_ms, lateness_ms, thresholds, last)
    return {
        "rows": rows,
        "alarm": any(row["alarms"] for row in rows if row["newest"]),
        "snapshots": len(files),
        "waiting": waiting[::-1],
        "before_src": before[::-1],
        "erased": len(erased),
        "log_clock": times.text(truth.history.end_ms),
        "shadow": {"rows": beside, "comparisons": comparisons, "pairs": len(pairs)},
    }


def _shadows(
    pairs: Sequence[Path],
    truth: Truth,
    begins_ms: int,
    lateness_ms: int,
    thresholds: Thresholds,
    last: int,
) -> tuple[list[Row], list[Comparison]]:
    """Champion and shadow in the newest `last` pairs of each shadow and horizon."""
    judged: list[Judged] = []
    counted: Counter[tuple[str, int]] = Counter()
    for file in reversed(pairs):
        moment_ms = snapshots.moment_of(file)
        if moment_ms < begins_ms:
            continue
        name = file.stem.rpartition("-")[2]
        mature = [
            days
            for days in snapshots.horizons_of(file)
            if truth.mature_ms(moment_ms, days, lateness_ms) is None and counted[name, days] < last
        ]
        if not mature:
            continue
        pair = shadowing.read(file).known(truth)
        for days in mature if pair.champion.users else ():
            counted[name, days] += 1
            judged.append(Judged.of(pair, truth, days, thresholds))
    rows = [row for one in reversed(judged) for row in one.rows]
    return rows, compare(judged)


def unjudged() -> dict[str, Any]:
    """What `audit` gives where there is no snapshot yet."""
    return {
        "rows": [],
        "alarm": False,
        "snapshots": 0,
        "waiting": [],
        "before_src": [],
        "erased": 0,
        "log_clock": None,
        "shadow": {"rows": [], "comparisons": [], "pairs": 0},
    }


def _told(log: Any, progress: Callable[[int], None] | None) -> Any:
    """The same log, counted."""
    done = 0
    for partition, batch in log:
        yield partition, batch
        done += batch.size
        if progress:
            progress(done)


async def drift(
    settings: Settings,
    beyond: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """The live users against the training population of the generation that serves.

    `psi` is the largest index of any column, None where nothing can be said; `reason` says why.
    So it is while stores flip to another generation: then two populations are served, and
    `generation` is None. `drifted` is whether `psi` is above `limit`, which is `beyond` or the
    setting `retrain.psi`; None where `psi` is.
    """
    stores = Stores(settings)
    try:
        # Asked first: the pipeline of a deployment without one would publish a generation.
        meta, live = await live_stores(stores.store(), stores.store)
        now_ms = await live_now(meta, live, time.time_ns() // 1_000_000)
        scorers = await _scorers(stores, live)
        serving = {scorer.generation.id: scorer.generation for scorer in scorers.values()}
        made = next(iter(serving.values()))
        facts: dict[str, Any] = {
            "generation": made.id if len(serving) == 1 else None,
            "as_of": times.text(now_ms),
            "psi": None,
            "limit": settings.retrain.psi if beyond is None else beyond,
            "drifted": None,
            "columns": {},
            "outliers": None,
            "reference": None,
        }
        if len(serving) > 1:
            names = " and ".join(sorted(one.short for one in serving.values()))
            reason = (
                f"a flip is under way, generations {names} both serve: ask again when it has "
                "ended, which takes a running worker (`livevalue run`)"
            )
            return {**facts, "users": 0, "reason": reason}
        reference = made.manifest.reference
        if reference is None:
            what = "is not trained" if made.manifest.family == "prior" else "keeps no population"
            reason = f"generation {made.short} {what}, so there is nothing to compare with"
            return {**facts, "users": 0, "reason": reason}
        tally = drifting.Tally(reference, made.manifest.horizons_s, drifting.read_by(made.manifest))
        bounded = Outliers.of(made.manifest)
        for partition, scorer in scorers.items():
            store = live[partition]
            seen: set[str] = set()
            cursor = ""
            while True:
                page, cursor = await store.scan(partition, cursor, _PAGE)
                users = [user for user in dict.fromkeys(page) if user not in seen]
                seen.update(users)
                blobs = (await store.load(partition, users)).states
                held = [(u, split(b)) for u, b in zip(users, blobs, strict=True) if b]
                states = States.decode([u for u, _ in held], [b[0] for _, b in held])
                at = np.flatnonzero(states.known())
                if len(at):
                    _, head, _ = scorer.unpack([held[i][1][1] for i in at.tolist()])
                    states = states.select(at)
                    as_of = np.maximum(history(states)["last_ms"], now_ms)
                    features = scorer.features(states, as_of[:, None])
                    said = made.model.predict(head, features).expected[:, 0]
                    tally.add(features[:, 0], said)
                    if bounded is not None:
                        bounded.add(features[:, 0])
                if progress:
                    progress(tally.known)
                if not cursor:
                    break
        found = tally.psi()
        largest = next((round(x, 4) for x in found.values()), None)
        reason = (
            ""
            if found
            else (
                f"{counted(tally.users, 'user was', 'users were')} seen within "
                f"{reference.seen_within_s // 86_400} days, "
                f"{drifting.LEAST_SEEN} are needed"
            )
        )
        return {
            **facts,
            "users": tally.users,
            "psi": largest,
            "drifted": None if largest is None else largest > facts["limit"],
            "columns": {name: round(x, 4) for name, x in found.items()},
            "outliers": bounded.as_json() if bounded is not None else None,
            "reference": {"as_of": times.text(reference.as_of_ms), "users": reference.users},
            "reason": reason,
        }
    finally:
        await stores.close()


async def _scorers(stores: Stores, live: Mapping[int, FeatureStore]) -> dict[int, Scorer]:
    """Of each partition, since while stores flip two serve; those without events have none."""
    # Without a watermark a partition names no generation: it would be given that of a first start.
    begun = [p for p, store in live.items() if (await store.load(p, [])).watermark]
    return {p: (await stores.pipeline_for(p)).scorer for p in begun or [min(live)]}


def write_metrics(file: Path, facts: dict[str, Any], drifted: dict[str, Any] | None) -> None:
    """The newest rows as a textfile of Prometheus' node_exporter; the file appears whole."""
    registry = CollectorRegistry()
    labels = ("generation", "horizon", "evidence")
    gauges = {
        name: Gauge(f"livevalue_audit_{name}", meaning, labels, registry=registry)
        for name, meaning in _GAUGES.items()
    }
    alarm = Gauge(
        "livevalue_audit_alarm", "1 = beyond its threshold", (*labels, "metric"), registry=registry
    )
    moment = Gauge(
        "livevalue_audit_snapshot_seconds",
        "Newest snapshot judged",
        ("horizon",),
        registry=registry,
    )
    for row in facts["rows"]:
        if not row["newest"]:
            continue
        named = (row["generation"], f"d{row['horizon_days']}", row["evidence"])
        for name, gauge in gauges.items():
            gauge.labels(*named).set(math.nan if row[name] is None else row[name])
        for name in _ALARMS:
            alarm.labels(*named, name).set(name in row["alarms"])
        moment.labels(named[1]).set(times.parse(row["snapshot"]) / 1000)
    if drifted is not None:
        psi = Gauge(
            "livevalue_audit_psi",
            "Population stability index: below .1 stable, beyond the limit of the alarm drifted",
            ("column",),
            registry=registry,
        )
        for name, index in drifted["columns"].items():
            psi.labels(name).set(index)
        if drifted["drifted"] is not None:
            # Of all users and horizons at once: to Prometheus an empty label is none.
            alarm.labels(drifted["generation"][:12], "", "", "psi").set(drifted["drifted"])
    try:
        write_to_textfile(str(file), registry)
    except OSError as error:
        raise Refused(f"cannot write {file} ({error.strerror}): name another file") from error
