"""Buy-till-you-die models, fitted by maximum likelihood on what is known, without any label.

Formulas:
- Pareto/NBD: Schmittlein, Morrison & Colombo 1987, in the form of Fader & Hardie 2005,
  "A note on deriving the Pareto/NBD model and related expressions";
- BG/NBD: Fader, Hardie & Lee 2005, "Counting your customers the easy way";
- Gamma-Gamma: Fader & Hardie 2013, "The Gamma-Gamma model of monetary value".
Tests hold the estimates against the published ones for the CDNOW sample, and against
pymc-marketing's where that is installed. Own code rather than a package: `lifetimes` is
unmaintained and pymc-marketing brings a sampler for three formulas.

Shapes: N users, one row each; x = repeat orders, t_x = age at the last order, T = age at the
cut-off, both since the first order and in one unit; m = mean value of n orders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln, gammaln, hyp2f1

from scoring.judging.metrics import Values

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


def _fit(
    loss: Callable[[Values], float], starts: Sequence[tuple[float, ...]], highest: float = 1e5
) -> Values:
    """Minimise over positive parameters by L-BFGS on their logarithms, from several starts.

    Likelihoods of these models are flat along ridges (r and alpha together): one start can stop
    on the way. A weak pull towards 1 keeps a parameter from running away where the data hold no
    word on it (nobody bought twice); it moves the published estimates by less than their digits.
    """

    def on_log(z: Values) -> float:
        with np.errstate(all="ignore"):  # far off the ridge terms overflow: no minimum there
            value = loss(np.exp(z))
        return value + 1e-7 * float(z @ z) if np.isfinite(value) else 1e10

    bounds = [(np.log(1e-4), np.log(highest))] * len(starts[0])
    found = [
        minimize(on_log, np.log(start), method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-11})
        for start in starts
    ]
    best = min(found, key=lambda result: float(result.fun))
    return np.asarray(np.exp(best.x), np.float64)


def _distinct(*columns: Values) -> tuple[list[Values], Values]:
    """Distinct rows and how often each occurs: day-stamped logs repeat them manyfold."""
    rows, count = np.unique(np.stack(columns, 1), axis=0, return_counts=True)
    return list(rows.T), count / count.sum()


@dataclass(frozen=True, slots=True)
class BgNbd:
    """Orders as a Poisson process; after each one the user may leave for good."""

    r: float
    alpha: float
    a: float
    b: float

    @classmethod
    def fit(cls, x: Values, t_x: Values, age: Values) -> BgNbd:
        """Maximum likelihood on (x, t_x, T)."""
        (x, t_x, age), weight = _distinct(x, t_x, age)
        scale = max(float(age.max()), 1e-9) / 10

        def loss(p: Values) -> float:
            r, alpha, a, b = p
            alpha = alpha * scale
            base = gammaln(r + x) - gammaln(r) + r * np.log(alpha)
            stays = betaln(a, b + x) - (r + x) * np.log(alpha + age)
            left = betaln(a + 1, b + np.maximum(x, 1) - 1) - (r + x) * np.log(alpha + t_x)
            both = np.where(x > 0, np.logaddexp(stays, left), stays)
            return -float(weight @ (base + both - betaln(a, b)))

        starts = [(1.0, 1.0, 1.0, 1.0), (0.3, 1.0, 0.8, 2.5), (0.3, 3.0, 0.1, 1.0)]
        r, alpha, a, b = _fit(loss, starts)
        return cls(float(r), float(alpha * scale), float(a), float(b))

    def p_alive(self, x: Values, t_x: Values, age: Values) -> Values:
        """P(has not left by T)."""
        odds = self.a / (self.b + np.maximum(x, 1) - 1)
        log_ratio = (self.r + x) * np.log((self.alpha + age) / (self.alpha + t_x))
        return np.where(x > 0, 1 / (1 + odds * np.exp(np.minimum(log_ratio, 500))), 1.0)

    def expected(self, x: Values, t_x: Values, age: Values, within: float) -> Values:
        """Orders expected in the next `within`."""
        r, alpha, a, b = self.r, self.alpha, self.a, self.b
        grown = alpha + age + within
        # at a = 1 the closed form is 0 / 0; a step beside it is as good as the limit
        a = a if abs(a - 1) > 1e-6 else 1 + 1e-6
        z = within / grown
        shrink = np.exp((r + x) * np.log1p(-z))
        tail = shrink * hyp2f1(r + x, b + x, a + b + x - 1, z)
        lost = ~np.isfinite(tail)
        if lost.any():
            n = x[lost]
            tail[lost] = _series(shrink[lost], r + n, b + n, a + b + n - 1, z[lost])
        value = (a + b + x - 1) / (a - 1) * (1 - tail)
        out: Values = np.maximum(value, 0) * self.p_alive(x, t_x, age)
        return out

    def p_active(self, x: Values, t_x: Values, age: Values, within: float) -> Values:
        """P(at least one order in the next `within`)."""
        none = np.exp((self.r + x) * np.log((self.alpha + age) / (self.alpha + age + within)))
        out: Values = self.p_alive(x, t_x, age) * (1 - none)
        return out


def _series(scale: Values, a: Values, b: Values, c: Values, z: Values) -> Values:
    """scale x 2F1(a, b; c; z) by its series, for 0 <= z < 1.

    scipy gives NaN where a is tens of thousands, which is where users who all order alike lead
    the fit (rates that differ little: r and alpha large). There z is small and a x z moderate.
    """
    term, total = scale.copy(), scale.copy()
    for k in range(10_000):
        term = term * (a + k) * (b + k) / ((c + k) * (k + 1)) * z
        total += term
        if (np.abs(term) <= 1e-12 * np.abs(total)).all():
            break
    return total


@dataclass(frozen=True, slots=True)
class ParetoNbd:
    """Orders as a Poisson process, at any moment of which the user may leave for good."""

    r: float
    alpha: float
    s: float
    beta: float

    @classmethod
    def fit(cls, x: Values, t_x: Values, age: Values) -> ParetoNbd:
        """Maximum likelihood on (x, t_x, T)."""
        (x, t_x, age), weight = _distinct(x, t_x, age)
        scale = max(float(age.max()), 1e-9) / 10

        def loss(p: Values) -> float:
            model = cls(float(p[0]), float(p[1]) * scale, float(p[2]), float(p[3]) * scale)
            return -float(weight @ model._log_likelihood(x, t_x, age))

        starts = [(1.0, 1.0, 1.0, 1.0), (0.5, 3.0, 0.6, 3.0), (0.5, 1.0, 0.3, 10.0)]
        r, alpha, s, beta = _fit(loss, starts)
        return cls(float(r), float(alpha * scale), float(s), float(beta * scale))

    def _log_left(self, x: Values, t_x: Values, age: Values) -> Values:
        """log of the integral over the moment of leaving, between the last order and T:

            s (alpha + y)^-(r + x) (beta + y)^-(s + 1) dy

        The literature writes it as two 2F1 whose difference cancels and whose series crawls
        where alpha and beta differ much (30 us a value, which a fit passes through). In
        u = log(y + min(alpha, beta)) the integrand is log-concave; cut where it has fallen by
        e^-30, 16 nodes of Gauss-Legendre hold it to 1e-6 (a test compares with 2F1).
        """
        alpha, beta, least = self.alpha, self.beta, min(self.alpha, self.beta)
        orders, leaves = self.r + x, self.s + 1
        begin = np.log(least + t_x)

        def log_of(u: Values) -> Values:
            shift = np.exp(u) - least
            out: Values = u - orders * np.log(alpha + shift) - leaves * np.log(beta + shift)
            return out

        first = log_of(begin)
        width = np.log((least + np.maximum(age, t_x)) / (least + t_x))
        for _ in range(4):  # Newton from the right: the fall is convex, so it never cuts too much
            fall = first - log_of(begin + width)
            if (fall <= 30).all():
                break
            e = np.exp(begin + width)
            shift = e - least
            slope = orders * e / (alpha + shift) + leaves * e / (beta + shift) - 1
            width = np.where(fall > 30, np.maximum(width - (fall - 30) / slope, 0), width)
        logs = log_of(begin + (NODES[:, None] + 1) / 2 * width)
        top = logs.max(0)
        with np.errstate(divide="ignore"):  # t_x = T: no time in which to leave
            out: Values = top + np.log(WEIGHTS / 2 @ np.exp(logs - top)) + np.log(width * self.s)
        return out

    def _log_stays(self, x: Values, age: Values) -> Values:
        return -(self.r + x) * np.log(self.alpha + age) - self.s * np.log(self.beta + age)

    def _log_likelihood(self, x: Values, t_x: Values, age: Values) -> Values:
        base = (
            gammaln(self.r + x)
            - gammaln(self.r)
            + self.r * np.log(self.alpha)
            + self.s * np.log(self.beta)
        )
        left = self._log_left(x, t_x, age)
        out: Values = base + np.logaddexp(self._log_stays(x, age), left)
        return out

    def p_alive(self, x: Values, t_x: Values, age: Values) -> Values:
        """P(has not left by T)."""
        left = self._log_left(x, t_x, age)
        return 1 / (1 + np.exp(np.clip(left - self._log_stays(x, age), -500, 500)))

    def expected(self, x: Values, t_x: Values, age: Values, within: float) -> Values:
        """Orders expected in the next `within`."""
        return self._over(x, t_x, age, within, 0)

    def p_active(self, x: Values, t_x: Values, age: Values, within: float) -> Values:
        """P(at least one order in the next `within`)."""
        return self._over(x, t_x, age, within, 1)

    def _over(self, x: Values, t_x: Values, age: Values, within: float, first: int) -> Values:
        """Integral over t in (0, within) of P(alive) x density of an order at t.

        Given that a user is alive at T his two rates are independent gammas, (r + x, alpha + T)
        and (s, beta + T). The rate of orders at T + t is E[lambda e^{-mu t}]; of *first* orders
        E[lambda e^{-(lambda + mu) t}]. One smooth integrand, so Gauss-Legendre; no case s = 1.
        """
        t = (NODES[:, None] + 1) / 2 * within
        rate = (self.r + x) / (self.alpha + age)
        stays = np.exp(self.s * np.log((self.beta + age) / (self.beta + age + t)))
        if first:
            power = self.r + x + 1
            stays *= np.exp(power * np.log((self.alpha + age) / (self.alpha + age + t)))
        out: Values = self.p_alive(x, t_x, age) * rate * (within / 2) * (WEIGHTS @ stays)
        return out


@dataclass(frozen=True, slots=True)
class GammaGamma:
    """Mean order value of a user, shrunk to that of all by how many orders speak for it."""

    p: float
    q: float
    v: float

    @classmethod
    def fit(cls, n: Values, m: Values) -> GammaGamma:
        """Maximum likelihood on users with n >= 1 orders of mean m > 0."""
        some = (n >= 1) & (m > 0)
        if not some.any():
            return cls(1.0, 2.0, 1.0)
        (n, m), weight = _distinct(n[some], m[some])
        scale = float(np.exp(weight @ np.log(m)))

        def loss(parameters: Values) -> float:
            # q > 1, or the mean of all is infinite
            p, q, v = parameters[0], 1.01 + parameters[1], parameters[2] * scale
            value = (
                gammaln(p * n + q)
                - gammaln(p * n)
                - gammaln(q)
                + q * np.log(v)
                + (p * n - 1) * np.log(m)
                + p * n * np.log(n)
                - (p * n + q) * np.log(n * m + v)
            )
            return -float(weight @ value)

        p, q, v = _fit(loss, [(1.0, 1.0, 1.0), (6.0, 2.7, 0.5), (3.0, 10.0, 3.0)])
        return cls(float(p), float(1.01 + q), float(v * scale))

    def mean(self, n: Values, m: Values) -> Values:
        """Expected mean order value of users with n orders of mean m; n = 0 gives that of all."""
        return self.p * (self.v + n * m) / (self.p * n + self.q - 1)
