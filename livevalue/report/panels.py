"""The charts of one horizon, and those across horizons and cut-offs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from featurestore.wording import counted
from livevalue.report.charts import Chart, Series, forest
from livevalue.report.gathered import Horizon
from livevalue.report.scales import Linear, LogOne
from scoring.judging.figures import mean_buckets, mean_gain, sample

DOTS = 700  # users drawn in a scatter


def ranking(horizon: Horizon) -> str:
    """nGini of each model with its interval."""
    rows = []
    for number, row in enumerate(horizon.pooled):
        low, high = (_nan(end) for end in row["intervals"]["ngini"])
        rows.append((row["model"], number, _nan(row["metrics"]["ngini"]), low, high))
    return forest(f"nGini over {counted(horizon.days, 'day')}, by model", rows, None)


def against(horizon: Horizon) -> str:
    """nGini of the first model minus that of the others; empty where there is no other."""
    rows = []
    for number, model in enumerate(horizon.models):
        found = horizon.difference(model, "ngini")
        if found is not None:
            delta, low, high = (_nan(found[name]) for name in ("delta", "low", "high"))
            rows.append((f"over {model}", number, delta, low, high))
    if not rows:
        return ""
    return forest(f"nGini of {horizon.models[0]} minus that of others", rows, 0.0)


def gain(horizon: Horizon) -> str:
    """Lorenz curves: how much of the money the first users by value hold."""
    x = [i / 100 for i in range(101)]
    chart = Chart(
        f"Gain curve over {counted(horizon.days, 'day')}",
        Linear(0, 1),
        Linear(0, 1),
        "share of users, highest value first",
        "share of what was spent",
        width=560,
        height=380,
    )
    chart.rule([(0, 0), (1, 1)], "random")
    pairs = horizon.pairs(horizon.models[0])
    best = mean_gain([(came, came) for came, _ in pairs])
    chart.line(Series("oracle", "oracle", list(zip(x, best.tolist(), strict=True)), dots=False))
    for number, model in reversed(list(enumerate(horizon.models))):
        curve = mean_gain(horizon.pairs(model)).tolist()
        chart.line(Series(model, number, list(zip(x, curve, strict=True)), dots=False))
    return chart.svg()


def deciles(horizon: Horizon, number: int) -> str:
    """What a model promised its deciles, and what they spent."""
    model = horizon.models[number]
    found = mean_buckets(horizon.pairs(model))
    high = float(max(found.said.max(), found.came.max()))
    at = [float(i + 1) for i in range(len(found.users))]
    chart = Chart(
        f"Decile calibration of {model}",
        Linear(0.5, len(at) + 0.5),
        LogOne(high * 1.2),
        "tenth of users by value, lowest first",
        "mean per user",
        width=330,
        height=250,
        x_labels=[(i, f"{i:g}") for i in at],
    )
    chart.line(Series("spent", "truth", list(zip(at, found.came.tolist(), strict=True))))
    chart.line(Series("predicted", number, list(zip(at, found.said.tolist(), strict=True))))
    return chart.svg()


def scatter(horizon: Horizon, number: int) -> str:
    """Users as dots: predicted against actual."""
    model = horizon.models[number]
    pairs = horizon.pairs(model)
    came = np.concatenate([c for c, _ in pairs])
    said = np.concatenate([s for _, s in pairs])
    high = float(max(np.quantile(came, 0.9995), np.quantile(said, 0.9995), 1.0))
    rows = sample(len(came), DOTS)
    chart = Chart(
        f"Predicted against actual, {model}",
        LogOne(high),
        LogOne(high),
        "predicted",
        "actual",
        width=330,
        height=290,
    )
    points = np.minimum(np.stack([said[rows], came[rows]], 1), high)
    chart.cloud([(float(x), float(y)) for x, y in points], f"s{number % 8}")
    ends = [0.0, *np.expm1(np.linspace(0, math.log1p(high), 20)[1:]).tolist()]
    chart.rule([(v, v) for v in ends], "even")
    return chart.svg()


def reliability(horizon: Horizon) -> str:
    """P(active) against how many were; empty where no model says it."""
    lines = []
    for number, model in enumerate(horizon.models):
        if pairs := horizon.activity(model):
            found = mean_buckets(pairs)
            points = list(zip(found.said.tolist(), found.came.tolist(), strict=True))
            lines.append(Series(model, number, points))
    if not lines:
        return ""
    high = min(1.0, max(v for one in lines for point in one.points for v in point) * 1.05)
    chart = Chart(
        f"Calibration of P(active) over {counted(horizon.days, 'day')}",
        Linear(0, high),
        Linear(0, high),
        "predicted probability of an order",
        "share who ordered",
        width=560,
        height=380,
    )
    chart.rule([(0, 0), (high, high)], "even")
    for one in reversed(lines):
        chart.line(one)
    return chart.svg()


def drift(horizon: Horizon, metric: str, name: str, right: float | None) -> str:
    """A metric at each cut-off; the first model's interval as a band."""
    lines, labels = [], [as_of[:10] for as_of, *_ in horizon.by_cutoff(horizon.models[0], metric)]
    for number, model in enumerate(horizon.models):
        rows = list(enumerate(horizon.by_cutoff(model, metric)))
        points = [(float(i), value) for i, (_, value, _, _) in rows]
        band = [(float(i), low, high) for i, (_, _, low, high) in rows] if number == 0 else []
        lines.append(Series(model, number, points, band))
    step = -(-len(labels) // 5)
    shown = [(float(i), label) for i, label in enumerate(labels) if i % step == 0]
    title = f"{name} over {counted(horizon.days, 'day')}, at each cut-off"
    return _lines(title, lines, "cut-off", name, right, len(labels), shown)


def across(horizons: Sequence[Horizon], metric: str, name: str, right: float | None) -> str:
    """A metric from horizon to horizon."""
    lines = []
    for number, model in enumerate(horizons[0].models):
        points, band = [], []
        for i, horizon in enumerate(horizons):
            row = horizon.pooled[number]
            points.append((float(i), _nan(row["metrics"][metric])))
            low, high = (_nan(end) for end in row["intervals"][metric])
            band.append((float(i), low, high))
        lines.append(Series(model, number, points, band if number == 0 else []))
    labels = [(float(i), f"{horizon.days} d") for i, horizon in enumerate(horizons)]
    title = f"{name} by horizon"
    return _lines(title, lines, "horizon", name, right, len(labels), labels)


def _lines(
    title: str,
    lines: Sequence[Series],
    x_name: str,
    y_name: str,
    right: float | None,
    count: int,
    labels: Sequence[tuple[float, str]],
) -> str:
    """Lines over a few named places; `right`: the value that is right, as a rule."""
    ends = [y for one in lines for _, y in one.points]
    ends += [v for one in lines for _, *both in one.band for v in both]
    ends += [] if right is None else [right]
    edge = 0.35
    chart = Chart(
        title,
        Linear(-edge, count - 1 + edge),
        Linear.around(ends),
        x_name,
        y_name,
        width=460,
        height=300,
        x_labels=labels,
    )
    if right is not None:
        chart.rule([(-edge, right), (count - 1 + edge, right)], "even")
    for one in reversed(lines):
        chart.line(one)
    return chart.svg()


def each(horizon: Horizon, draw: Callable[[Horizon, int], str]) -> list[tuple[int, str, str]]:
    """(number, model, chart) for every model."""
    return [(n, model, draw(horizon, n)) for n, model in enumerate(horizon.models)]


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
