"""The report as one HTML file: the style, the charts and the text in it, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from featurestore.wording import counted
from livevalue.output import Refused, costs, measured
from livevalue.report import panels
from livevalue.report.charts import mark
from livevalue.report.gathered import Horizon, Row
from scoring.judging.contenders import model_names
from scoring.judging.cutoffs import stamp
from scoring.judging.evaluation import Question, Report

Table = dict[str, Any]  # head, rows

RANKING = (
    ("ngini", "nGini"),
    ("spearman", "Spearman"),
    ("top10", "top 10 %"),
    ("top20", "top 20 %"),
    ("auc", "AUC"),
)
LEVEL = (
    ("bias", "bias"),
    ("bias_net", "bias, net"),
    ("dmape", "decile MAPE"),
    ("mae", "MAE"),
    ("rmse", "RMSE"),
    ("cover80", "80 % coverage"),
)
YES_NO = (
    ("brier", "Brier"),
    ("ece", "ECE"),
    ("accuracy", "accuracy"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("f1", "F1"),
)


def write(path: Path, report: Report, question: Question, src: Sequence[str], unit: str) -> None:
    """Write the page; Refused where that cannot be."""
    text = render(report, question, src, unit)
    with _opened(path) as file:
        file.write(text)


def writable(path: Path) -> None:
    """Refused where the page could not be written, or not be made."""
    _jinja2()
    new = not path.exists()
    _opened(path, "a").close()
    if new:
        path.unlink()


def _opened(path: Path, mode: str = "w") -> IO[str]:
    try:
        return path.open(mode, encoding="utf-8")
    except OSError as error:
        raise Refused(f"cannot write {path} ({error.strerror}): name another file") from error


def _jinja2() -> ModuleType:
    try:
        return import_module("jinja2")
    except ImportError as error:
        raise Refused(
            "--html is made with jinja2: install the package with its extra `evaluate`"
        ) from error


def render(report: Report, question: Question, src: Sequence[str], unit: str) -> str:
    """The page's text."""
    jinja2 = _jinja2()
    folder = files("livevalue.report") / "templates"

    def load(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    horizons = Horizon.all(report, question)
    text: str = environment.get_template("evaluation.html").render(
        asked=_asked(question, src, unit),
        horizons=[_section(horizon) for horizon in horizons],
        across=_across(horizons),
        legend=[(mark(n), name, model_names()[name]) for n, name in enumerate(horizons[0].models)],
        costs=_costs(horizons[0]),
        notes=report.notes,
        task=question.task.name,
    )
    return text


@dataclass(frozen=True, slots=True)
class Section:
    """One horizon, ready for the template."""

    days: int
    users: str
    said: list[str]
    tables: dict[str, Table]
    charts: dict[str, str]
    deciles: list[tuple[int, str, str]]
    scatters: list[tuple[int, str, str]]
    click_reason: str | None


def _section(horizon: Horizon) -> Section:
    first = horizon.pooled[0]
    cutoffs = first["cutoffs"]
    moments = f" at {cutoffs} cut-offs" if cutoffs > 1 else ""
    drift = {}
    if cutoffs > 1:
        drift = {
            "drift_rank": panels.drift(horizon, "ngini", "nGini", None),
            "drift_level": panels.drift(horizon, "bias", "predicted / actual", 1.0),
        }
    return Section(
        horizon.days,
        f"{first['users']:,} {horizon.question.population.replace('all', 'users')}{moments}",
        list(_said(horizon)),
        {
            "ranking": _metrics(horizon, RANKING),
            "level": _metrics(horizon, LEVEL),
            "yes_no": _metrics(horizon, YES_NO),
            "targeting": _targeting(horizon),
            "groups": _groups(horizon),
        },
        {
            "ranking": panels.ranking(horizon),
            "against": panels.against(horizon),
            "gain": panels.gain(horizon),
            "reliability": panels.reliability(horizon),
            **drift,
        },
        panels.each(horizon, panels.deciles),
        panels.each(horizon, panels.scatter),
        horizon.first_run(horizon.models[0])["targeting"]["click_through_reason"],
    )


def _said(horizon: Horizon) -> Iterator[str]:
    """In words, what can be told from the intervals, and what cannot."""
    first = horizon.models[0]
    row = horizon.pooled[0]
    low, high = row["intervals"]["ngini"]
    yield (
        f"{first} ranks with nGini {measured(row['metrics']['ngini'])}"
        f" ({measured(low)} to {measured(high)}) and promises"
        f" {measured(row['metrics']['bias'])} of what then came."
    )
    better: list[str] = []
    worse: list[str] = []
    even: list[str] = []
    for model in horizon.models[1:]:
        found = horizon.difference(model, "ngini")
        if found is None or found["low"] is None:
            continue
        group = better if found["low"] > 0 else worse if found["high"] < 0 else even
        group.append(model)
    for group, says in (
        (better, "ranks better than"),
        (worse, "ranks worse than"),
        (even, "cannot be told apart on these users from"),
    ):
        if group:
            yield f"{first} {says} {', '.join(group)}."


def _metrics(horizon: Horizon, columns: Sequence[tuple[str, str]]) -> Table:
    rows = []
    for number, row in enumerate(horizon.pooled):
        cells = []
        for metric, _ in columns:
            low, high = row["intervals"].get(metric, (None, None))
            known = low is not None and high is not None
            interval = f"{measured(low)} to {measured(high)}" if known else ""
            cells.append((measured(row["metrics"][metric]), interval))
        rows.append((number, row["model"], cells))
    return {"head": [name for _, name in columns], "rows": rows}


def _targeting(horizon: Horizon) -> Table:
    """Conversion and click-through of who would be targeted, and of the others."""

    def shares(model: str, name: str) -> list[tuple[str, str]]:
        first = horizon.mean_fact(model, lambda run: run["targeting"]["targeted"][name])
        others = horizon.mean_fact(model, lambda run: run["targeting"]["untargeted"][name])
        ratio = first / others if others > 0 else math.nan
        said = "–" if math.isnan(ratio) else f"{ratio:.1f}"
        return [(_percent(first), ""), (_percent(others), ""), (said, "")]

    rows = [
        (number, model, [*shares(model, "conversion"), *shares(model, "click_through")])
        for number, model in enumerate(horizon.models)
    ]
    head = [
        f"{what} {who}"
        for what in ("conversion,", "click-through,")
        for who in ("targeted", "others", "ratio")
    ]
    share = f"{horizon.question.target_share:.0%}"
    return {"head": head, "rows": rows, "share": share}


def _groups(horizon: Horizon) -> Table:
    rows: list[Row] = []
    by = None
    for group in horizon.groups():
        cells = [
            tuple(measured(None if math.isnan(v) else v) for v in found.values())
            for found in group["models"]
        ]
        rows.append({**group, "cells": cells, "first": group["by"] != by})
        by = group["by"]
    return {"head": horizon.models, "rows": rows}


def _across(horizons: Sequence[Horizon]) -> list[str]:
    """nGini and level from horizon to horizon, where there are several."""
    if len(horizons) < 2:
        return []
    return [
        panels.across(horizons, "ngini", "nGini", None),
        panels.across(horizons, "bias", "predicted / actual", 1.0),
    ]


def _asked(question: Question, src: Sequence[str], unit: str) -> list[tuple[str, str]]:
    if question.cutoffs_ms is None:
        cutoffs = "chosen: windows that end by each cut-off, from half-way to the last of them"
    else:
        cutoffs = ", ".join(stamp(at) for at in question.cutoffs_ms)
    return [
        ("log", ", ".join(Path(one).name for one in src)),
        ("cut-offs", ", ".join(stamp(at) for at in question.as_of_ms)),
        ("horizons", ", ".join(counted(days, "day") for days in question.horizons_days)),
        *([("held against", counted(question.label_days, "day"))] if question.label_days else []),
        ("users", question.population),
        ("unit", unit),
        ("one order is", {"user-day": "all of a user's day"}.get(question.net_by, question.net_by)),
        ("training cut-offs", cutoffs),
        ("yes or no", question.task.name),
        ("seeds", str(question.seeds)),
    ]


def _costs(horizon: Horizon) -> Table:
    """What each model learned from, and what it takes."""
    rows = []
    for number, model in enumerate(horizon.models):
        run = horizon.first_run(model)
        trained = f"{run['n_train']:,}" if run["n_train"] else "–"
        took = f"{horizon.mean_fact(model, lambda row: row['seconds']):.1f}"
        spent = costs(run["cost"]) if run["cost"] else "–"
        rows.append((number, model, [(trained, ""), (took, ""), (spent, "")]))
    return {"head": ["rows trained on", "seconds", "cost"], "rows": rows}


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
