"""The mixture against its definition: simulation, ordering, consistency."""

from __future__ import annotations

import numpy as np
import pytest

from scoring.heads import Z90, capped_mean, mixture, mixture_quantile, normal_quantile, prediction

F32 = np.float32


def _random(users: int = 64, knots: int = 3, horizons: int = 3, seed: int = 0):  # type: ignore[no-untyped-def]
    r = np.random.default_rng(seed)
    shape = (users, knots, horizons)
    q = r.uniform(0.01, 0.95, shape).astype(F32)
    mu = r.normal(3.0, 1.0, shape).astype(F32)
    sigma = r.uniform(0.2, 1.3, shape).astype(F32)
    return q, mu, sigma


def _simulate(q, mu, sigma, draws: int = 60_000):  # type: ignore[no-untyped-def]
    r = np.random.default_rng(1)
    h = len(q)
    parts = (r.random((draws, h)) < q) * np.exp(mu + sigma * r.normal(size=(draws, h)))
    return parts.cumsum(axis=1)


def test_expected_value_and_activity_are_those_of_the_simulated_mixture() -> None:
    q, mu, sigma = _random(8, 1)
    made = mixture(q, mu, sigma, 1e9)
    for u in range(8):
        totals = _simulate(q[u, 0], mu[u, 0], sigma[u, 0])
        np.testing.assert_allclose(made.expected[u, 0], totals.mean(axis=0), rtol=0.05)
        np.testing.assert_allclose(made.p_active[u, 0], (totals > 0).mean(axis=0), atol=0.01)


def test_quantiles_given_activity_are_close_to_the_simulated_ones() -> None:
    q, mu, sigma = _random(24, 1, seed=3)
    q = np.maximum(q, F32(0.1))  # enough positive draws to take quantiles of
    # a user's order values resemble each other from increment to increment
    mu = (mu[..., :1] + 0.4 * (mu - 3)).astype(F32)
    got = prediction(mixture(q, mu, sigma, 1e9)).if_active
    errors = []
    for u in range(24):
        totals = _simulate(q[u, 0], mu[u, 0], sigma[u, 0])
        for h in range(3):
            positive = totals[:, h][totals[:, h] > 0]
            want = np.quantile(positive, [0.1, 0.5, 0.9])
            errors.append(np.log(got[u, h] / want))
    worst = np.abs(np.array(errors))
    assert worst.mean() < 0.08
    assert worst[0::3].max() < 0.1  # one increment: exact up to the simulation's noise
    assert worst.max() < 0.45


def test_longer_horizons_are_never_worth_less() -> None:
    q, mu, sigma = _random(500, 4)
    level = np.array([1.3, 0.7, 1.0], F32)
    p = mixture(q, mu, sigma, 1e4)
    made = prediction(p, level=level, p_active=p.p_active * np.array([1.0, 0.5, 0.4], F32))
    for values in (made.expected, made.p_active, made.p50[:, None], made.p90[:, None]):
        assert (np.diff(values, axis=-1) >= 0).all()
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    assert (made.p_active <= 1).all()


def test_the_cap_bounds_a_wild_increment_and_nothing_overflows() -> None:
    wild = np.full((1, 1, 1), 80, F32)
    assert capped_mean(wild, wild, 500.0)[0, 0, 0] == pytest.approx(500, rel=1e-4)
    made = prediction(mixture(np.full((1, 1, 1), 0.5, F32), wild, np.full((1, 1, 1), 3, F32), 500))
    assert made.expected[0, 0, 0] == pytest.approx(250, rel=1e-4)


def test_hazard_replaces_independence_for_activity_only() -> None:
    q, mu, sigma = _random(10, 2)
    hazard = q * F32(0.5)
    plain, own = mixture(q, mu, sigma, 1e4), mixture(q, mu, sigma, 1e4, hazard)
    np.testing.assert_array_equal(plain.expected, own.expected)
    np.testing.assert_allclose(own.p_active[..., -1], 1 - np.prod(1 - hazard, -1), rtol=1e-5)


def test_a_quantile_below_the_mass_at_zero_is_zero() -> None:
    p = np.array([[0.05, 0.3, 0.8]], F32)
    zeros, ones = np.zeros((1, 3), F32), np.ones((1, 3), F32)
    median = mixture_quantile(0.5, p, zeros, ones)
    assert median[0, :2].tolist() == [0, 0]
    assert median[0, 2] > 0
    r = np.random.default_rng(0)
    drawn = (r.random(400_000) < 0.8) * np.exp(r.normal(size=400_000))
    assert median[0, 2] == pytest.approx(np.median(drawn), rel=0.02)


def test_calibration_moves_the_value_given_activity_so_that_the_product_holds() -> None:
    q, mu, sigma = _random(50, 1, 1)
    made = mixture(q, mu, sigma, 1e9)
    level, p = np.array([1.7], F32), made.p_active * F32(0.6)
    got = prediction(made, level, p)
    mean_if_active = got.if_active[:, 0, 1] * np.exp(np.square(sigma[:, 0, 0]) / 2)
    np.testing.assert_allclose(got.expected[:, 0, 0], p[:, 0, 0] * mean_if_active, rtol=1e-4)


def test_normal_quantile_inverts_the_distribution_function() -> None:
    from scipy.special import ndtr

    u = np.concatenate([np.geomspace(1e-10, 0.5, 200), 1 - np.geomspace(1e-10, 0.5, 200)])
    np.testing.assert_allclose(ndtr(normal_quantile(u)), u, rtol=1e-7)
    assert normal_quantile(np.array([0.9]))[0] == pytest.approx(Z90, abs=1e-8)
