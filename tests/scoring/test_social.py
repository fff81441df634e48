"""Neighbours: what the graph says at an instant, what a generation carries, what is served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from featurestore.clock import Clocks
from featurestore.columns import EVENT, NO_TIME, STEPS, Erase, EventBatch, Kind
from featurestore.events import action_code, target_code
from featurestore.fold import FoldSettings, fold
from featurestore.settings import FeatureSettings
from featurestore.state import States
from scoring.errors import GenerationError
from scoring.generation import Generation, prior, unservable
from scoring.inputs import FEATURE_NAMES, HELD_NAMES, SOCIAL_NAMES, readable
from scoring.judging.metrics import ngini
from scoring.scorer import Scorer
from scoring.settings import ModelSettings
from scoring.social import NEAR_NAMES, Table, keys
from scoring.training import social_graph
from scoring.training.examples import ExampleBuilder, Examples, Log, build
from scoring.training.social_graph import Edges, worth
from scoring.zoo import graph, linear
from tests.scoring.shoplog import DAY_MS, START_MS, cutoff_days

ON = FeatureSettings(social=True)
MODEL = ModelSettings(horizons_days=(7, 30), headline="d30")
HORIZONS_S = (7 * 86_400, 30 * 86_400)
CUTS = cutoff_days([30, 50, 70, 90])
HALF_LIFE_MS = 45 * DAY_MS


def town(users: int = 240, days: int = 130, seed: int = 0) -> list[tuple[int, EventBatch]]:
    """Circles of friends who message one another; each circle spends alike, none by his own past.

    Two partitions, whose batches come one partition after the other, as a log is read.
    """
    r = np.random.default_rng(seed)
    circle = np.arange(users) // 8
    rate = np.exp(r.normal(-4.0, 1.6, circle.max() + 1))[circle]
    rows: list[tuple[int, int, int, int]] = []  # time, user, target or -1, micro
    for day in range(days):
        for u in np.flatnonzero(r.random(users) < 0.15).tolist():
            friend = int(circle[u] * 8 + r.integers(0, 8))
            rows.append((day * DAY_MS + int(r.integers(DAY_MS)), u, friend, 0))
        buyers = np.flatnonzero(r.random(users) < rate).tolist()
        rows += [(day * DAY_MS + int(r.integers(DAY_MS)), u, -1, 10_000_000) for u in buyers]
    table = np.array(sorted(rows), np.int64)
    return [(p, batch) for p in range(2) for batch in batches(table[table[:, 1] % 2 == p], p)]


def batches(table: np.ndarray, p: int, size: int = 700) -> Iterator[EventBatch]:
    events = np.zeros(len(table), EVENT)
    events["time_ms"] = events["record_ms"] = START_MS + table[:, 0]
    events["id_hi"], events["id_lo"] = np.arange(len(table)) + 1, p
    events["value_micro"] = table[:, 3]
    bought = table[:, 3] > 0
    events["kind"] = np.where(bought, Kind.PURCHASE, Kind.INTERACTION)
    events["flags"] = np.where(bought, STEPS, 0)
    events["action"] = np.where(bought, 0, action_code("message"))
    names = [
        None if t < 0 or t == u else f"u{t}" for u, t in zip(table[:, 1], table[:, 2], strict=True)
    ]
    events["target"] = [target_code(name) for name in names]
    for start in range(0, len(table), size):
        part = slice(start, start + size)
        users, row = np.unique(table[part, 1], return_inverse=True)
        yield EventBatch(
            [f"u{u}" for u in users.tolist()],
            row.astype(np.int32),
            events[part],
            np.arange(len(table))[part],
            events["record_ms"][part].copy(),
            event_id=[None] * len(row),
            target=names[part],
        )


LOG = town()


def rows_of(log: Log, cuts: np.ndarray = CUTS, features: FeatureSettings = ON) -> Examples:
    return build(log, features, ["events"], HORIZONS_S, cuts, START_MS, 0)


ROWS = rows_of(LOG)
MADE = graph.train(ROWS)


def near(rows: Examples) -> np.ndarray:
    return rows.read(NEAR_NAMES)


def by_name(rows: Examples) -> dict[tuple[str, int], np.ndarray]:
    where = zip(rows.user.tolist(), rows.window.tolist(), near(rows), strict=True)
    return {(rows.users[u], w): values for u, w, values in where}


def test_neighbours_are_those_of_the_formula_pair_by_pair() -> None:
    r = np.random.default_rng(1)
    names = [f"n{i}" for i in range(12)]
    count, at_ms = 60, START_MS + 90 * DAY_MS
    a, b = r.integers(0, 12, count), r.integers(0, 12, count)
    a, b = a[a != b], b[a != b]
    time = START_MS + r.integers(0, 80, len(a)) * DAY_MS
    edges = Edges(np.array([at_ms]), HALF_LIFE_MS)
    who, whom = [names[i] for i in a], [names[i] for i in b]
    edges.add(who, whom, time, time, time)
    x = r.normal(size=(12, 3)).astype(np.float32)
    got = dict(zip(edges.names, edges.near(at_ms, names, x, {}), strict=True))

    weight = np.zeros((12, 12))
    for i, j, t in zip(a, b, time, strict=True):
        weight[i, j] += 2 ** (-(at_ms - t) / HALF_LIFE_MS)
        weight[j, i] += 2 ** (-(at_ms - t) / HALF_LIFE_MS)
    degree = 1 + weight.sum(axis=1)
    for i, name in enumerate(names):
        want = sum(weight[i, j] * x[j] / np.sqrt(degree[i] * degree[j]) for j in range(12))
        others = {*b[a == i].tolist(), *a[b == i].tolist()}
        np.testing.assert_allclose(got[name][:3], want, rtol=1e-5, atol=1e-6)
        assert got[name][3] == pytest.approx(np.log1p(len(others)))
        assert got[name][4] == pytest.approx(np.log1p(len(set(a[b == i].tolist()))))


def test_adding_edges_up_early_and_small_batches_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(social_graph, "LARGEST", 50)
    small = []
    for p, batch in LOG:
        cut = int(batch.log_ms[batch.size // 2])
        small += [(p, batch.before(cut)), (p, after(batch, cut))]
    one, other = by_name(ROWS), by_name(rows_of(small))
    assert one.keys() == other.keys()
    for key, values in one.items():
        np.testing.assert_allclose(values, other[key], rtol=1e-5, atol=1e-6)


def after(batch: EventBatch, cut_ms: int) -> EventBatch:
    kept = np.flatnonzero(batch.events["time_ms"] >= cut_ms)
    return EventBatch(
        batch.users,
        batch.user[kept],
        batch.events[kept],
        batch.offset[kept],
        batch.log_ms[kept],
        event_id=[None] * len(kept),
        target=batch.targets(kept),
    )


def test_what_comes_after_a_cut_off_is_in_no_row_before_it() -> None:
    cut = int(CUTS[1])
    shorter = [(p, batch.before(cut)) for p, batch in LOG]
    whole, part = by_name(ROWS), by_name(rows_of(shorter, CUTS[:2]))
    early = {key: values for key, values in whole.items() if key[1] == 0}
    assert early
    for key, values in early.items():
        np.testing.assert_array_equal(values, part[key])
    assert any((whole[name, 0] != whole[name, 3]).any() for name, window in whole if window == 0)


def live(log: Log, until_ms: int, features: FeatureSettings = ON) -> States:
    """Users as a worker has folded them by then."""
    settings, kept = FoldSettings.of(features, ["events"]), dict[str, bytes]()
    clocks = {0: Clocks.start(1), 1: Clocks.start(1)}
    for p, batch in log:
        part = batch.before(until_ms)
        folded = fold(
            States.decode(part.users, [kept.get(u) for u in part.users]), part, clocks[p], settings
        )
        clocks[p] = folded.clocks
        kept.update(zip(part.users, folded.states.encode(), strict=True))
    states = States.decode(list(kept), list(kept.values()))
    return states.select(np.flatnonzero(states.known()))


def test_what_is_served_right_after_a_retrain_is_what_a_row_of_that_instant_holds() -> None:
    until = int(CUTS[3])
    shorter = [(p, batch.before(until)) for p, batch in LOG]
    # As retrain sees it: the log ends at the cut-off, and the table is of its clock.
    builder_rows = rows_of(shorter, CUTS[:3])
    made = graph.train(builder_rows)
    scorer = Scorer(made, MODEL, ON)
    states = live(LOG, until)
    clock = builder_rows.clock_ms
    when = np.maximum(states.head["last_ms"], clock)
    served = scorer.features(states, when[:, None])[:, 0]
    start = builder_rows.log_start_ms
    builder = ExampleBuilder(ON, ["events"], HORIZONS_S, np.array([clock + 1]), start, 0)
    for p, batch in shorter:
        builder.add(p, batch)
    again = builder.finish(clock + 1)
    assert made.manifest.features == again.names
    rows = again.read(again.names)
    place = {again.users[u]: i for i, u in enumerate(again.user.tolist())}
    assert set(states.users) == set(place)
    wanted = rows[[place[name] for name in states.users]]
    # The row is one millisecond younger than the table.
    np.testing.assert_allclose(served, wanted, rtol=1e-5, atol=1e-5)
    assert (served[:, -len(NEAR_NAMES) :] > 0).all(axis=1).any()


def test_who_is_unknown_to_the_table_or_erased_since_gets_nothing() -> None:
    values = np.diag(np.array([1, 2, 0, 0, 0], np.float32))[:3]
    table = Table.of(["ada", "bo", "hermit"], values, 100)
    assert len(table.keys) == 2  # the hermit has nothing to be kept
    again = Table.load(table.dump())
    never = np.full(4, NO_TIME)
    got = again.join(["bo", "new", "ada", "hermit"], never)
    assert got[:, 0].tolist() == [0, 0, 1, 0]
    assert got[:, 1].tolist() == [2, 0, 0, 0]
    assert not again.join(["bo"], np.array([101])).any()
    assert again.join(["bo"], np.array([100])).any()
    assert not Table.of([], np.zeros((0, 5), np.float32), 0).join(["ada"], never[:1]).any()


def test_a_damaged_table_is_refused() -> None:
    table = Table.of(["ada", "bo"], np.ones((2, 5), np.float32), 100)
    with pytest.raises(GenerationError, match="damaged"):
        Table.load(replace(table, near=table.near[:, :4].copy()).dump())
    with pytest.raises(GenerationError, match="publish it again"):
        Table.load(b"not a table")


def test_an_erased_user_is_in_no_table_and_his_edges_are_gone() -> None:
    last = max(int(batch.log_ms.max()) for _, batch in LOG)
    erase = EventBatch.empty()
    erase.users, erase.erases = ["u3"], [Erase(0, 0, last)]
    rows = rows_of([*LOG, (1, erase)])
    assert rows.table is not None
    assert ROWS.table is not None
    assert keys(["u3"])[0] in ROWS.table.keys
    assert keys(["u3"])[0] not in rows.table.keys
    assert not any(rows.users[u] == "u3" for u in rows.user.tolist())
    # u4 is of his circle, and what u3 had sent him counts no more.
    friends = ROWS.table.join(["u4"], np.array([NO_TIME])), rows.table.join(["u4"], np.array([0]))
    assert friends[1][0, 4] < friends[0][0, 4]


def test_neighbours_tell_more_than_a_users_own_past_where_value_follows_the_circle() -> None:
    newest = ROWS.rows(ROWS.window == 3)
    older = ROWS.rows(ROWS.window < 3)

    def ranks(made: Generation) -> float:
        none = np.zeros((len(newest), 0), np.float32)
        said = made.model.predict(none, newest.read(made.manifest.features)[:, None])
        return ngini(newest.value[:, 1], said.expected[:, 0, 1].astype(np.float64))

    assert ranks(graph.train(older)) > ranks(linear.train(older)) + 0.03


def test_a_log_without_edges_has_no_columns_of_neighbours_and_still_trains() -> None:
    quiet = [(p, replace(batch, target=[])) for p, batch in LOG]
    rows = rows_of(quiet, features=FeatureSettings())
    assert rows.names == (*FEATURE_NAMES, *HELD_NAMES)
    assert rows.table is None
    made = graph.train(rows)
    assert Scorer(made, MODEL, FeatureSettings()).features(live(LOG, int(CUTS[0])), now()).any()


def now() -> np.ndarray:
    return np.full((len(live(LOG, int(CUTS[0])).users), 1), int(CUTS[1]))


def test_a_champion_that_reads_edges_gives_way_where_they_are_folded_no_more() -> None:
    quiet = rows_of([(p, replace(batch, target=[])) for p, batch in LOG], CUTS, FeatureSettings())
    for rows, serves in ((ROWS, True), (quiet, False)):
        assert (unservable(MADE.manifest, HORIZONS_S, "", rows.readable) == "") is serves
    assert not unservable(prior(MODEL).manifest, HORIZONS_S, "", quiet.readable)
    assert "SOCIAL" in unservable(MADE.manifest, HORIZONS_S, "", readable(FeatureSettings()))
    # Without an edge in the log neighbours are worth nothing, and nobody stumbles over it.
    assert not quiet.read(NEAR_NAMES).any()


def test_a_generation_that_reads_edges_is_refused_where_none_are_folded() -> None:
    assert set(SOCIAL_NAMES) <= set(MADE.manifest.features)
    with pytest.raises(GenerationError, match="LIVEVALUE_FEATURES__SOCIAL=true"):
        Scorer(MADE, MODEL, FeatureSettings())


def test_a_generation_that_reads_no_edges_is_served_the_same_with_and_without_them() -> None:
    states = live(LOG, int(CUTS[2]))
    made = prior(MODEL)
    when = np.full((len(states.users), 1), int(CUTS[2]))
    on, off = (Scorer(made, MODEL, how).features(states, when) for how in (ON, FeatureSettings()))
    assert on.tobytes() == off.tobytes()
    assert on.shape[2] == len(FEATURE_NAMES)


def test_worth_adds_what_features_say_of_each_kind() -> None:
    x = np.zeros((1, len(FEATURE_NAMES)), np.float32)
    for kind, value in (("browse", 5.0), ("purchase", 7.0), ("interaction", -2.0)):
        at = FEATURE_NAMES.index(f"decayed_{kind}_value_2")
        x[0, at] = np.copysign(np.log1p(abs(value)), value)
        x[0, FEATURE_NAMES.index(f"decayed_{kind}s_2")] = np.log1p(3.0)
    x[0, FEATURE_NAMES.index("decayed_orders_2")] = np.log1p(4.0)
    assert worth(x)[0].tolist() == pytest.approx(np.log1p([10, 4, 9]).tolist(), rel=1e-6)
