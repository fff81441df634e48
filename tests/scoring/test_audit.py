"""The audit: labels that are mature only, rows by generation and evidence, audible alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from featurestore.columns import Erase, EventBatch
from featurestore.fold_settings import FoldSettings
from featurestore.settings import FeatureSettings
from scoring.judging.history import DAY
from scoring.judging.metrics import Values
from scoring.retraining.audit import (
    EVIDENCE,
    Predicted,
    Row,
    Served,
    Thresholds,
    Truth,
    alarms,
    judge,
    kept,
    labels,
)
from tests.scoring.shoplog import START_MS, batches

USERS = 2000
DAYS = 30
MOMENT = START_MS + 100 * DAY
FOLD = FoldSettings.of(FeatureSettings(), ["a", "b"])


def log(
    user: Sequence[int], day: Sequence[float], value: Sequence[float]
) -> list[tuple[int, EventBatch]]:
    """Events of users u0, u1, … at days after the snapshot."""
    time_ms = MOMENT + (np.array(day) * DAY).astype(np.int64)
    micro = (np.array(value) * 1e6).astype(np.int64)
    return list(batches(np.array(user, np.int64), time_ms, micro))


def served(expected: Values, **more: object) -> Served:
    """A snapshot of as many users; p_active and quantiles that are right of `truth`."""
    n = len(expected)
    made = Served(
        snapshot_ms=MOMENT,
        users=[f"u{i}" for i in range(n)],
        as_of_ms=np.full(n, MOMENT - DAY),
        spent=np.ones(n),
        generation=np.full(n, "aaa", object),
        evidence=np.full(n, "enough", object),
        horizons={DAYS: Predicted(expected, np.full(n, 0.5), np.full(n, 10.0), np.full(n, 90.0))},
    )
    return replace(made, **more)  # type: ignore[arg-type]


def came_true(scale: float = 1.0) -> tuple[Served, Values]:
    """Half the users spend 0 to 100, evenly; expected is right in the mean, times `scale`."""
    r = np.random.default_rng(0)
    value = np.where(np.arange(USERS) % 2 == 0, r.uniform(0, 100, USERS), 0.0)
    expected = scale * (0.8 * value + 0.2 * value.mean())
    return served(expected, spent=r.uniform(0, 1, USERS)), value


def in_all(rows: Sequence[Row]) -> Row:
    (row,) = [row for row in rows if row["evidence"] == "all"]
    return row


def test_a_label_is_the_net_value_from_the_snapshot_to_the_horizon() -> None:
    truth = Truth.of(
        log(
            [0, 0, 0, 0, 1, 2, 2, 9],
            [-1, 0, 29.9, 30, 5, 1, 2, 3],
            [100, 7, 5, 50, -3, 8, -9, 1],
        ),
        FOLD,
    )
    value, active = labels(served(np.ones(5)), truth, DAYS)
    assert value.tolist() == [12, 0, 0, 0, 0]
    assert active.tolist() == [True, False, True, False, False]


def test_what_the_fold_rejects_as_future_is_in_no_label() -> None:
    events = log([0, 0, 0, 1], [1, 2, 3, 4], [7, 100, 5, 9])
    (_, batch) = events[0]
    batch.events["record_ms"][1] -= 2 * DAY
    truth = Truth.of(events, FOLD)
    assert labels(served(np.ones(2)), truth, DAYS)[0].tolist() == [12, 9]


def test_what_a_newer_document_had_seen_is_no_part_of_its_label() -> None:
    truth = Truth.of(log([0, 0, 1, 1], [0.5, 2, 0, 0.5], [7, 5, 9, 7]), FOLD)
    newer = served(np.ones(2), as_of_ms=np.array([MOMENT + DAY // 2, MOMENT]))
    assert labels(newer, truth, DAYS)[0].tolist() == [5, 7]


def test_a_label_is_mature_only_when_the_log_is_past_horizon_and_lateness() -> None:
    truth = Truth.of(log([0, 0], [0, 33], [1, 1]), FOLD)
    assert truth.mature_ms(MOMENT, 30, 3 * DAY) is None
    assert truth.mature_ms(MOMENT + 1, 30, 3 * DAY) == MOMENT + 33 * DAY + 1
    assert truth.mature_ms(MOMENT, 90, 3 * DAY) == MOMENT + 93 * DAY


def part(
    partition: int, source: int, days: Sequence[float], *, offset: int = 0, value: float = 1.0
) -> tuple[int, EventBatch]:
    """One source partition's log, from a record on."""
    at = np.arange(len(days))
    ((_, batch),) = log(at.tolist(), days, [value] * len(at))
    batch.events["source"] = source
    # Identities of its own: those of other parts are no repeats.
    batch.events["id_lo"] += np.uint64(1000 * (10 * partition + source))
    batch.offset = at + offset
    return partition, batch


def test_a_log_begins_with_its_first_event_where_no_part_is_shortened() -> None:
    parts = [part(0, 0, [-9, 1]), part(0, 1, [-3, 2]), part(1, 0, [5, 6])]
    assert Truth.of(parts, FOLD).begins_ms == MOMENT - 9 * DAY
    assert Truth.of([], FOLD).begins_ms is None


def test_a_log_begins_with_the_latest_beginning_of_its_shortened_parts() -> None:
    parts = [
        part(0, 0, [-9, 1]),
        part(0, 1, [-3, -1], offset=7),
        part(0, 1, [3, 4], offset=9),  # goes on: no beginning
        part(1, 0, [-7, 2], offset=1),
        part(1, 1, [5, 6]),
    ]
    assert Truth.of(parts, FOLD).begins_ms == MOMENT - 3 * DAY
    # As one batch, in any order of the sources.
    assert Truth.of([parts[0], parts[3]], FOLD).begins_ms == MOMENT - 7 * DAY


def test_a_shortened_source_without_value_is_in_no_label() -> None:
    parts = [part(0, 0, [-9, 1]), part(0, 1, [-3, -1], offset=7, value=0.0)]
    assert Truth.of(parts, FOLD).begins_ms == MOMENT - 9 * DAY
    parts.append(part(1, 1, [2.0]))  # what the source says elsewhere has value
    assert Truth.of(parts, FOLD).begins_ms == MOMENT - 3 * DAY


def test_files_are_no_shortened_log_though_their_offsets_count_over_all_partitions() -> None:
    parts = [part(0, 0, [-9, 1]), part(1, 0, [-3, -1], offset=7)]
    assert Truth.of(parts, FOLD, files=True).begins_ms == MOMENT - 9 * DAY


def test_erased_users_are_left_out_and_counted() -> None:
    events = log([0, 1, 2, 3], [-1, -1, -1, -1], [1, 1, 1, 1])
    events.append((0, _erased("u1", MOMENT + DAY)))
    events.append((0, _erased("u2", MOMENT - DAY // 2)))  # who came back before the snapshot
    left, gone = kept(served(np.arange(4.0)), Truth.of(events, FOLD))
    assert (left.users, gone) == (["u0", "u2", "u3"], 1)
    assert left.horizons[DAYS].expected.tolist() == [0, 2, 3]


def _erased(user: str, record_ms: int) -> EventBatch:
    whole = EventBatch.empty()
    return replace(whole, users=[user], erases=[Erase(user=0, source=0, record_ms=record_ms)])


def test_a_right_model_raises_no_alarm() -> None:
    snapshot, value = came_true()
    row = in_all(judge(snapshot, value, value > 0, DAYS, Thresholds()))
    assert row["alarms"] == []
    assert (row["users"], row["active"]) == (USERS, USERS // 2)
    assert row["bias"] == pytest.approx(1.0, abs=0.01)
    assert row["cover80"] == pytest.approx(0.8, abs=0.05)
    assert row["ngini"] > 0.9 > row["ngini_past"]
    assert row["actual"] == pytest.approx(value.sum(), abs=0.01)
    assert row["brier"] == 0.25


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_biased_model_raises_the_alarm(scale: float) -> None:
    snapshot, value = came_true(scale)
    row = in_all(judge(snapshot, value, value > 0, DAYS, Thresholds()))
    assert row["bias"] == pytest.approx(scale, abs=0.01)
    assert row["alarms"] == ["bias"]
    assert in_all(judge(snapshot, value, value > 0, DAYS, Thresholds(bias=0.4)))["alarms"] == []


def test_quantiles_that_are_too_narrow_raise_the_alarm() -> None:
    snapshot, value = came_true()
    said = snapshot.horizons[DAYS]
    narrow = replace(said, p10=said.p10 + 25, p90=said.p90 - 25)
    snapshot = replace(snapshot, horizons={DAYS: narrow})
    assert in_all(judge(snapshot, value, value > 0, DAYS, Thresholds()))["alarms"] == ["cover80"]


def test_a_ranking_below_that_of_past_spend_raises_the_alarm() -> None:
    snapshot, value = came_true()
    said = snapshot.horizons[DAYS]
    shuffled = replace(said, expected=np.random.default_rng(1).permutation(said.expected))
    snapshot = replace(snapshot, horizons={DAYS: shuffled}, spent=value + 1)
    assert in_all(judge(snapshot, value, value > 0, DAYS, Thresholds()))["alarms"] == ["ngini"]


def test_nobody_spending_where_many_were_expected_is_an_alarm() -> None:
    snapshot, value = came_true()
    nothing = np.zeros_like(value)
    row = in_all(judge(snapshot, nothing, nothing > 0, DAYS, Thresholds()))
    assert row["bias"] is None
    assert row["alarms"] == ["bias"]


def test_few_users_raise_no_alarm() -> None:
    value = np.array([5.0, 0.0, 0.0])
    row = in_all(judge(served(np.full(3, 50.0)), value, value > 0, DAYS, Thresholds()))
    assert row["bias"] == 30
    assert row["alarms"] == []


def _row(**more: object) -> Row:
    right = {"bias": 1.0, "cover80": 0.8, "ngini": 0.8, "ngini_past": 0.5}
    return {"active": 100, "active_expected": 100.0, **right, **more}


def test_many_active_users_are_enough_for_the_level_though_few_were_expected() -> None:
    assert alarms(_row(active=100, active_expected=3.0, bias=0.1), Thresholds()) == ["bias"]
    assert alarms(_row(active=3, active_expected=100.0, bias=9.0), Thresholds()) == ["bias"]
    assert alarms(_row(active=99, active_expected=99.9, bias=0.1), Thresholds()) == []


def test_coverage_and_ranking_are_judged_by_users_who_were_active() -> None:
    off = {"cover80": 0.5, "ngini": 0.1}
    assert alarms(_row(active=100, **off), Thresholds()) == ["cover80", "ngini"]
    assert alarms(_row(active=99, active_expected=500.0, **off), Thresholds()) == []


def test_two_generations_in_one_snapshot_are_judged_apart() -> None:
    snapshot, value = came_true()
    first = np.arange(USERS) < USERS // 2
    said = snapshot.horizons[DAYS]
    level = np.where(first, 1.0, 3.0)
    snapshot = replace(
        snapshot,
        generation=np.where(first, "aaa", "bbb").astype(object),
        evidence=np.array(EVIDENCE[1:], object)[np.arange(USERS) % 3],
        horizons={DAYS: replace(said, expected=said.expected * level)},
    )
    rows = judge(snapshot, value, value > 0, DAYS, Thresholds())
    assert [(row["generation"], row["evidence"]) for row in rows] == [
        (generation, evidence) for generation in ("aaa", "bbb") for evidence in EVIDENCE
    ]
    levels = {r["generation"]: r["bias"] for r in rows if r["evidence"] == "all"}
    assert levels["aaa"] == pytest.approx(1, abs=0.05)
    assert levels["bbb"] == pytest.approx(3, abs=0.15)
    assert sum(row["users"] for row in rows if row["evidence"] == "all") == USERS
    for name in ("aaa", "bbb"):
        of = [row for row in rows if row["generation"] == name]
        assert sum(row["actual"] for row in of[1:]) == pytest.approx(of[0]["actual"], abs=0.05)
