"""Documents: equal to the pydantic contract, exact where promised, readable at any time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import times
from featurestore.columns import NO_TIME
from featurestore.settings import ValueSettings
from scoring.documents import Cause, Documents, at, horizon_names, significant
from scoring.errors import ScoringError
from scoring.generation import Generation, Manifest
from scoring.interface import Floats, Prediction
from scoring.settings import ModelSettings
from scoring.values import (
    History,
    HorizonValue,
    IfActive,
    Previous,
    Silence,
    Unit,
    UserValue,
    ValueUpdate,
    Why,
)

HORIZONS_S = (7 * 86400, 30 * 86400, 90 * 86400)
MODEL = ModelSettings()
VALUE = ValueSettings(currency="GBP")


@dataclass(slots=True)
class Constant:
    """A model family of nothing: documents need only its horizons."""

    horizons_s: tuple[int, ...] = HORIZONS_S
    carry_size: int = 0

    def advance(self, carries: Floats, rows: Any, tokens: Floats) -> Floats:
        return carries

    def predict(self, carries: Floats, features: Floats) -> Prediction:
        raise AssertionError("documents do not predict")


GENERATION = Generation(
    "3f9c" * 16,
    Manifest(family="constant", horizons_s=HORIZONS_S, seen_types=("purchase", "interaction")),
    Constant(),
    {},
)
DOCUMENTS = Documents(VALUE, MODEL, GENERATION)
NAMES = DOCUMENTS.horizons


@dataclass(slots=True)
class Case:
    """Arguments of build for U users."""

    users: list[str]
    revision: int
    as_of: np.ndarray[Any, np.dtype[np.int64]]
    prediction: Prediction
    history: dict[str, np.ndarray[Any, np.dtype[np.int64]]]
    before: np.ndarray[Any, np.dtype[np.int64]]
    previous: Floats
    causes: list[Cause]

    def build(self) -> list[dict[str, Any]]:
        return [json.loads(document) for document in self.raw()]

    def raw(self) -> list[bytes]:
        return DOCUMENTS.build(
            self.users, self.revision, self.as_of, self.prediction, self.history,
            self.before, self.previous, self.causes,
        )  # fmt: skip


def case(seed: int, users: Sequence[str], scale: float = 3.0) -> Case:
    rng = np.random.default_rng(seed)
    n, k, h = len(users), len(MODEL.silence_days), len(HORIZONS_S)

    def worth(*shape: int) -> Floats:
        sparse = rng.random(shape) > 0.1
        return (np.exp(rng.normal(0, scale, shape)) * sparse).astype(np.float32)

    def moment() -> np.ndarray[Any, np.dtype[np.int64]]:
        ms = rng.integers(-(10**12), 2 * 10**12, n)
        ms = np.where(rng.random(n) < 0.5, ms // 1000 * 1000, ms)
        return np.where(rng.random(n) < 0.2, NO_TIME, ms)

    as_of = rng.integers(10**12, 2 * 10**12, n)
    money = {
        name: rng.integers(-(10**15) if name == "spent_micro" else 0, 10**15, n)
        for name in ("spent_micro", "gross_micro", "refunded_micro")
    }
    previous = worth(n, h)
    before = rng.integers(0, 5, n)
    previous[rng.random(n) < 0.2] = np.nan
    return Case(
        list(users),
        int(rng.integers(1, 10**9)),
        as_of,
        Prediction(
            worth(n, k, h),
            rng.random((n, k, h)).astype(np.float32),
            worth(n, h),
            worth(n, h),
            worth(n, h, 3),
        ),
        {
            "orders": rng.integers(0, 6, n),
            "refunds": rng.integers(0, 3, n),
            "first_ms": np.where(rng.random(n) < 0.1, NO_TIME, as_of - rng.integers(0, 10**10, n)),
            "last_ms": moment(),
            "last_order_ms": moment(),
            **money,
        },
        before,
        previous,
        [
            Cause("silence", None, None, None, None)
            if rng.random() < 0.3
            else Cause("purchase", f'e"{row}', "events.purchase", row, row * 10**9)
            for row in range(n)
        ],
    )


def five(x: float | np.floating[Any]) -> float:
    return float(f"{float(x):.4e}")


def stamp(ms: np.int64) -> str | None:
    return None if ms == NO_TIME else times.text(int(ms))


def money(micro: np.int64) -> float:
    return float(Decimal(int(micro)) / 10**6)


def twin(c: Case, u: int) -> UserValue:
    """One document, written as one would first."""
    p, past = c.prediction, c.history
    orders, first = int(past["orders"][u]), past["first_ms"][u]
    known_ms = 0 if first == NO_TIME else c.as_of[u] - first
    thin = orders <= 2 or known_ms < 30 * times.DAY_MS
    lifetime = {}
    for i, horizon in enumerate(HORIZONS_S):
        left_s = horizon - known_ms / 1000
        if first != NO_TIME and left_s > 0:
            # straight lines through nothing now and each horizon's value
            expected = [0.0, *p.expected[u, 0].astype(float)]
            ahead = np.interp(left_s, [0, *HORIZONS_S], expected)
            lifetime[NAMES[i]] = five(max(0.0, money(past["spent_micro"][u]) + ahead))
    previous = None
    if c.before[u] > 0 and not np.isnan(c.previous[u]).any():
        curve = {name: five(c.previous[u, i]) for i, name in enumerate(NAMES)}
        previous = Previous.model_validate({"revision": int(c.before[u]), **curve})
    return UserValue(
        v=1,
        user_id=c.users[u],
        revision=c.revision,
        as_of=times.text(int(c.as_of[u])),
        headline="d90",
        values={
            name: HorizonValue(
                expected=five(p.expected[u, 0, i]),
                p_active=five(p.p_active[u, 0, i]),
                p50=five(p.p50[u, i]),
                p90=five(p.p90[u, i]),
                if_active=IfActive(
                    p10=five(p.if_active[u, i, 0]),
                    p50=five(p.if_active[u, i, 1]),
                    p90=five(p.if_active[u, i, 2]),
                ),
            )
            for i, name in enumerate(NAMES)
        },
        previous=previous,
        silence=Silence(
            days=list(MODEL.silence_days),
            expected={n: [five(x) for x in p.expected[u, :, i]] for i, n in enumerate(NAMES)},
            p_active={n: [five(x) for x in p.p_active[u, :, i]] for i, n in enumerate(NAMES)},
        ),
        history=History(
            orders=orders,
            spent=money(past["spent_micro"][u]),
            spent_gross=money(past["gross_micro"][u]),
            refunds=int(past["refunds"][u]),
            refunded=money(past["refunded_micro"][u]),
            first_event_at=stamp(first),
            last_event_at=stamp(past["last_ms"][u]),
            last_order_at=stamp(past["last_order_ms"][u]),
        ),
        lifetime=lifetime or None,
        unit=Unit(kind="money", code="GBP"),
        evidence="cold" if orders == 0 else "thin" if thin else "enough",
        unseen=["browse"],
        generation="3f9c3f9c3f9c",
        cause=Why.model_validate(c.causes[u]._asdict()),
    )


@given(st.integers(0, 2**32), st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=8))
def test_a_document_equals_the_contract(seed: int, users: list[str]) -> None:
    c = case(seed, users)
    for u, raw in enumerate(c.raw()):
        document = json.loads(raw)
        assert document == twin(c, u).model_dump(mode="json")
        # Readers that stream rely on no order, but people read: the contract's order is kept.
        fields = [f for f in UserValue.model_fields if f != "lifetime" or f in document]
        assert list(document) == fields
        ValueUpdate.model_validate_json(raw)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=50))
def test_five_digits_equal_pythons_formatting(numbers: list[float]) -> None:
    rounded = significant(np.array(numbers, np.float32))
    for x, got in zip(numbers, rounded.tolist(), strict=True):
        if abs(x) < 1e-15:
            assert got == 0
        elif abs(x) < 1e26:
            assert got == five(x)


def test_history_is_exact_to_the_millionth() -> None:
    c = case(1, ["ada"])
    c.history["spent_micro"][:] = 123_456_789_012_345
    assert b'"spent":123456789.012345,' in c.raw()[0]


def test_a_first_document_has_no_previous() -> None:
    c = case(2, ["ada", "bob"])
    c.before[:] = (0, 3)
    c.previous[:] = 1.0
    first, second = c.build()
    assert first["previous"] is None
    assert second["previous"] == {"revision": 3, "d7": 1.0, "d30": 1.0, "d90": 1.0}


@pytest.mark.parametrize(
    ("orders", "days", "evidence"),
    [(0, 400, "cold"), (2, 400, "thin"), (3, 29, "thin"), (3, 30, "enough")],
)
def test_evidence_says_how_much_is_known(orders: int, days: int, evidence: str) -> None:
    c = case(3, ["ada"])
    c.history["orders"][:] = orders
    c.history["first_ms"] = c.as_of - days * times.DAY_MS
    assert c.build()[0]["evidence"] == evidence


@pytest.mark.parametrize(
    ("days", "named"),
    [(0, ["d7", "d30", "d90"]), (6.5, ["d7", "d30", "d90"]), (7, ["d30", "d90"]), (89, ["d90"])],
)
def test_only_the_young_have_a_lifetime_and_only_to_ages_ahead(
    days: float, named: list[str]
) -> None:
    c = case(8, ["ada", "bob"])
    c.history["first_ms"] = c.as_of - np.array([int(days * times.DAY_MS), 90 * times.DAY_MS])
    young, old = c.build()
    assert list(young["lifetime"]) == named
    assert "lifetime" not in old


def test_at_the_first_event_a_lifetime_is_what_is_spent_and_expected() -> None:
    c = case(9, ["ada"])
    c.history["first_ms"] = c.as_of.copy()
    c.history["spent_micro"][:] = 2_000_000
    document = c.build()[0]
    for name, worth in document["lifetime"].items():
        assert worth == pytest.approx(2 + document["values"][name]["expected"], rel=1e-4)


def test_a_lifetime_is_never_below_nothing_where_more_came_back_than_was_spent() -> None:
    c = case(10, ["ada"])
    c.history["first_ms"] = c.as_of.copy()
    c.history["spent_micro"][:] = -(10**15)
    assert set(c.build()[0]["lifetime"].values()) == {0.0}


def test_a_unit_with_a_percent_sign_is_only_a_name() -> None:
    c = case(4, ["a%b"])
    named = Documents(ValueSettings(kind="count", currency="%d points"), MODEL, GENERATION)
    (raw,) = named.build(
        c.users, c.revision, c.as_of, c.prediction, c.history, c.before, c.previous, c.causes
    )
    document = json.loads(raw)
    assert (document["unit"]["code"], document["user_id"]) == ("%d points", "a%b")


def test_a_headline_that_is_not_predicted_names_the_choices() -> None:
    with pytest.raises(ScoringError, match="d7, d30, d90"):
        Documents(VALUE, MODEL.model_copy(update={"headline": "d365"}), GENERATION)


def test_nobody_has_no_document() -> None:
    assert case(5, []).raw() == []


def test_reading_later_follows_the_silence_curve() -> None:
    c = case(6, ["ada"])
    document = c.build()[0]
    as_of = times.parse(document["as_of"])
    curve = document["silence"]["expected"]["d30"]
    days = document["silence"]["days"]
    for knot, value in zip(days[1:], curve[1:], strict=True):
        read = at(document, as_of + int(knot * times.DAY_MS))
        assert read["values"]["d30"]["expected"] == value
    middle = (days[2] + days[3]) / 2
    halfway = at(document, as_of + int(middle * times.DAY_MS))["values"]["d30"]["expected"]
    assert halfway == pytest.approx((curve[2] + curve[3]) / 2, rel=1e-4)
    beyond = at(document, as_of + 4000 * times.DAY_MS)
    assert beyond["values"]["d30"]["expected"] == curve[-1]
    assert beyond["as_of"] == times.text(as_of + 4000 * times.DAY_MS)


def test_a_lifetime_read_later_is_that_of_the_values_read_later() -> None:
    c = case(11, ["ada"])
    # curves that keep horizons ordered, as every model's do
    np.maximum.accumulate(c.prediction.expected, axis=2, out=c.prediction.expected)
    c.history["first_ms"] = c.as_of - 20 * times.DAY_MS
    c.history["spent_micro"][:] = 50_000_000
    document = c.build()[0]
    as_of = times.parse(document["as_of"])
    assert list(at(document, as_of + 5 * times.DAY_MS)["lifetime"]) == ["d30", "d90"]
    later = at(document, as_of + 10 * times.DAY_MS)
    assert list(later["lifetime"]) == ["d90"]
    said = later["values"]
    # at an age of 30 days 60 are left: half-way between the horizons of 30 and 90
    ahead = (said["d30"]["expected"] + said["d90"]["expected"]) / 2
    assert later["lifetime"]["d90"] == pytest.approx(50 + ahead, rel=1e-4)
    assert "lifetime" not in at(document, as_of + 70 * times.DAY_MS)


def test_reading_at_or_before_its_time_changes_nothing() -> None:
    document = case(7, ["ada"]).build()[0]
    as_of = times.parse(document["as_of"])
    assert at(document, as_of) == document == at(document, as_of - 10**9)


def test_horizons_are_named_by_days() -> None:
    assert horizon_names(HORIZONS_S) == ("d7", "d30", "d90")
