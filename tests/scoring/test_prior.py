import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featurestore.clock import Clocks
from featurestore.columns import EVENT, STEPS, EventBatch, Kind
from featurestore.fold import FoldSettings, fold
from featurestore.settings import FeatureSettings
from featurestore.state import States
from featurestore.vector import encode
from scoring.generation import prior
from scoring.interface import Prediction
from scoring.settings import ModelSettings

DAY = 86_400_000
START = 15_000 * DAY
FEATURES = FeatureSettings()
PRIOR = prior(ModelSettings())


def values(orders: list[tuple[float, float]], at_days: list[float]) -> Prediction:
    """Value at some days of a user with (day, amount) events."""
    events = np.zeros(len(orders), EVENT)
    events["time_ms"] = [START + round(day * DAY) for day, _ in orders]
    events["record_ms"] = events["time_ms"]
    events["id_hi"] = np.arange(len(orders)) + 1
    events["value_micro"] = [round(amount * 1e6) for _, amount in orders]
    events["kind"], events["flags"] = Kind.PURCHASE, STEPS
    rows = np.zeros(len(orders), np.int32)
    batch = EventBatch(["ada"], rows, events, np.arange(len(orders)), events["record_ms"].copy())
    settings = FoldSettings.of(FEATURES, ["events"])
    states = fold(States.empty(["ada"]), batch, Clocks.start(1), settings).states
    when = np.array([[START + round(day * DAY) for day in at_days]], np.int64)
    features = encode(states, when, START, FEATURES)
    return PRIOR.model.predict(np.zeros((1, 0), np.float32), features)


gaps = st.lists(st.floats(0.01, 200), min_size=1, max_size=8)


@given(gaps=gaps, amount=st.floats(0.5, 5000))
def test_value_falls_all_the_time_that_a_user_is_silent(gaps: list[float], amount: float) -> None:
    days = np.cumsum(gaps)
    knots = [days[-1] + k for k in (0, 1, 3, 7, 14, 30, 60, 90, 180, 365)]
    made = values([(float(d), amount) for d in days], knots)
    assert (np.diff(made.expected[0], axis=0) < 0).all()
    assert (np.diff(made.p_active[0], axis=0) < 0).all()


@given(gaps=gaps, amount=st.floats(0.5, 5000))
def test_value_rises_at_an_order_of_the_usual_amount(gaps: list[float], amount: float) -> None:
    days = [float(d) for d in np.cumsum(gaps)]
    then = days[-1] + 5
    before = values([(d, max(amount, 20.0)) for d in days], [then])
    after = values([*((d, max(amount, 20.0)) for d in days), (then, max(amount, 20.0))], [then])
    assert (after.expected > before.expected).all()
    assert (after.p_active > before.p_active).all()


def test_more_orders_and_larger_ones_are_worth_more() -> None:
    once = values([(0, 20.0)], [30])
    often = values([(0, 20.0), (10, 20.0), (20, 20.0)], [30])
    large = values([(0, 90.0)], [30])
    assert (often.expected > once.expected).all()
    assert (large.expected > once.expected).all()


def test_a_regular_buyer_is_worth_most_of_what_he_spends() -> None:
    weekly = values([(7.0 * week, 50.0) for week in range(60)], [7.0 * 59 + 1])
    spends = 50 * 30 / 7
    assert 0.6 * spends < weekly.expected[0, 0, 1] < spends


def test_the_same_settings_give_the_same_generation() -> None:
    assert prior(ModelSettings()).id == PRIOR.id
    assert prior(ModelSettings(horizons_days=(7, 30, 365), headline="d365")).id != PRIOR.id
