"""Training augmentation: what is passed over was never there, and off is off."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `train`")

from featurestore.settings import FeatureSettings  # noqa: E402
from featurestore.vector import TOKENS  # noqa: E402
from scoring.interface import Floats  # noqa: E402
from scoring.settings import TrainingSettings  # noqa: E402
from scoring.training import augmenting, loop  # noqa: E402
from scoring.training.augmenting import Augment  # noqa: E402
from scoring.training.batches import Data  # noqa: E402
from scoring.training.columns import Columns  # noqa: E402
from scoring.training.examples import ExampleBuilder, Examples, build  # noqa: E402
from tests.scoring.shoplog import DAY_MS, START_MS, batches, cutoff_days, shop  # noqa: E402
from tests.scoring.tiny import HORIZONS_S  # noqa: E402

USERS, EVENTS = 5, 120
R = np.random.default_rng(3)
USER = R.integers(0, USERS, EVENTS)
TIME_MS = START_MS + np.sort(R.integers(0, 100 * DAY_MS, EVENTS))
MICRO = R.integers(1, 90, EVENTS) * 1_000_000


def steps(keep: np.ndarray, time_ms: np.ndarray = TIME_MS) -> tuple[Floats, np.ndarray, np.ndarray]:
    """(tokens, ranks, which event each is) as the fold tells them of some events."""
    cut = cutoff_days([110])
    builder = ExampleBuilder(FeatureSettings(), ["s0"], HORIZONS_S, cut, START_MS, 0)
    for p, batch in batches(USER[keep], time_ms[keep], MICRO[keep]):
        builder.add(p, batch)
    rows = builder.finish(int(cut[0]))
    of = [int(rows.users[u][1:]) for u in rows.user.tolist()]
    event = np.concatenate([np.flatnonzero(keep & (u == USER)) for u in of])
    spans = [np.arange(*rows.starts[s : s + 2]) for s in rows.sequence.tolist()]
    ranks = np.concatenate([np.arange(len(span)) for span in spans])
    return rows.tokens[np.concatenate(spans)], ranks, event


def by_event(tokens: Floats, event: np.ndarray) -> dict[int, Floats]:
    return dict(zip(event.tolist(), tokens, strict=True))


def test_a_step_passed_over_was_never_there() -> None:
    every = np.ones(EVENTS, bool)
    tokens, ranks, event = steps(every)
    kept = R.random(EVENTS) > 0.5
    got = by_event(augmenting.without(tokens, ranks, kept[event]), event[kept[event]])
    want = by_event(*steps(kept)[::2])
    assert got.keys() == want.keys()
    for number, token in want.items():
        np.testing.assert_allclose(got[number], token, atol=1e-4)


def test_a_step_is_moved_as_if_it_had_come_then() -> None:
    every = np.ones(EVENTS, bool)
    tokens, ranks, event = steps(every)
    by = R.uniform(-0.2, 0.2, USERS)[USER] + np.linspace(0, 3, EVENTS)  # keeps the order
    got = by_event(augmenting.moved(tokens, ranks, by[event]), event)
    want = by_event(*steps(every, TIME_MS + np.round(by * DAY_MS).astype(np.int64))[::2])
    for number, token in want.items():
        np.testing.assert_allclose(got[number], token, atol=1e-4)
    overtaken = augmenting.moved(tokens, ranks, R.normal(0, 50, EVENTS))
    assert (overtaken[:, TOKENS.index("gap")] >= 0).all()


def test_an_epoch_draws_about_the_share_and_a_cut_off_of_everybody() -> None:
    sequence = np.repeat(np.arange(400), R.integers(1, 9, 400))
    augment = Augment(0.3, 0.0, 0.6, np.random.default_rng(0))
    kept = augment.rows(sequence)
    assert set(sequence[kept].tolist()) == set(range(400))
    assert 0.4 < kept.mean() < 0.6
    assert (augment.rows(sequence) != kept).any()
    tokens, ranks, _ = steps(np.ones(EVENTS, bool))
    some, left = augment.steps(tokens, ranks)
    assert len(some) == left.sum()
    assert 0.55 < left.mean() < 0.85


@pytest.fixture(scope="module")
def examples() -> Examples:
    log = batches(*shop(300, 150))
    cuts = cutoff_days(range(40, 140, 20))
    return build(log, FeatureSettings(), ["s0"], HORIZONS_S, cuts, log_start_ms=START_MS)


QUICK = TrainingSettings(epochs=2, width=4, users_per_batch=64, rate=1e-2, least_orders=20)


def test_rows_read_the_carry_after_the_steps_that_are_left(examples: Examples) -> None:
    net = loop.train(examples, QUICK).net
    data = Data.of(examples, columns=Columns.of_settings(examples))
    few = np.unique(data.sequence)[:40]
    whole = data.outputs(net, few)[0].q
    nothing = Augment(0.0, 0.0, 0.0, np.random.default_rng(0))
    torch.testing.assert_close(data.outputs(net, few, nothing)[0].q, whole)
    # With every step passed over, a row is that of a user who never had one.
    deaf = data.outputs(net, few, Augment(1.0, 0.0, 0.0, np.random.default_rng(0)))[0].q
    rows = np.isin(data.sequence, few)
    zero = net.head(
        torch.zeros(int(rows.sum()), net.readout), data.features[torch.from_numpy(rows)]
    )
    torch.testing.assert_close(deaf, zero.q)


@pytest.mark.parametrize("name", ["event_dropout", "time_jitter_days", "cutoff_dropout"])
def test_augmentation_is_off_by_default_and_seeded(examples: Examples, name: str) -> None:
    assert Augment.of(TrainingSettings()) is None

    def weights(**more: float) -> bytes:
        net = loop.train(examples, QUICK.model_copy(update=more)).net
        return b"".join(w.detach().numpy().tobytes() for w in net.parameters())

    on = weights(**{name: 0.4})
    assert on == weights(**{name: 0.4})
    assert on != weights()
