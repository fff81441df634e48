"""`evaluate --html`: one file that says what the JSON says, without a server or a network."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from featurestore.settings import FeatureSettings
from livevalue.output import Refused
from livevalue.report.charts import Chart, Series, forest
from livevalue.report.gathered import Horizon
from livevalue.report.page import render, write
from livevalue.report.scales import Linear, LogOne
from scoring.judging.evaluation import Question, Report, evaluate
from tests.scoring.logs import DAY, START, shoppers

AS_OF = START // DAY * DAY + 150 * DAY
MODELS = ("pareto_gg", "past_spend", "prior")


class Page(HTMLParser):
    """Tags that are open at the end, what is fetched, ids and links."""

    VOID = frozenset(["meta", "link"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.count: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        for name, value in attrs:
            if name in ("src", "data", "xlink:href") or (name == "href" and tag != "a"):
                self.fetched.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name == "href" and tag == "a":
                self.links.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def asked() -> tuple[Report, Question]:
    question = Question((AS_OF - 30 * DAY, AS_OF), (14, 30), MODELS, draws=40)
    return evaluate(shoppers(users=300), question, FeatureSettings(), ["events"]), question


@pytest.fixture(scope="module")
def page(asked: tuple[Report, Question]) -> str:
    return render(*asked, ["orders/shop.csv"], "GBP")


def test_the_page_is_whole_and_fetches_nothing(page: str) -> None:
    found = Page(page)
    assert found.open == [] and found.wrong == []
    assert [one for one in found.fetched if not one.startswith("data:")] == []
    assert not re.search(r"https?://|@import|url\(", page)
    assert len(found.ids) == len(set(found.ids))
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)


def test_the_page_says_what_the_json_says(page: str, asked: tuple[Report, Question]) -> None:
    report, _ = asked
    for row in report.pooled:
        assert row["model"] in page
        for metric in ("ngini", "bias", "mae", "auc", "f1"):
            value = row["metrics"][metric]
            shown = f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
            assert f"<td>{shown}" in page, (row["model"], metric)
    for name in ("all", "cold", "thin", "enough", "0 to 30 days"):
        assert f": {name}</th>" in page
    assert "no browse in the window" in page


def test_every_chart_is_there_and_says_what_it_is(page: str) -> None:
    charts = re.findall(r'<svg class="chart[^"]*" role="img" aria-label="([^"]+)"', page)
    for days in (14, 30):
        for wanted in (
            f"nGini over {days} days, by model",
            f"Gain curve over {days} days",
            f"Calibration of P(active) over {days} days",
            f"nGini over {days} days, at each cut-off",
        ):
            assert charts.count(wanted) == 1, wanted
    for model in MODELS:
        assert charts.count(f"Decile calibration of {model}") == 2  # one a horizon
        assert charts.count(f"Predicted against actual, {model}") == 2
    assert charts.count("nGini by horizon") == 1
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower().split()


def test_points_lie_within_their_chart(page: str) -> None:
    for svg in re.findall(r'<svg class="chart.*?</svg>', page, re.DOTALL):
        size = re.search(r'viewBox="0 0 (\d+) (\d+)"', svg)
        assert size is not None
        width, height = int(size[1]), int(size[2])
        for points in re.findall(r'points="([^"]*)"', svg):
            for pair in points.split():
                x, y = (float(one) for one in pair.split(","))
                assert -1 <= x <= width + 1 and -1 <= y <= height + 1, (svg[:120], pair)


def test_one_cutoff_and_one_horizon_have_no_chart_across_them(
    asked: tuple[Report, Question],
) -> None:
    _, question = asked
    one = replace(question, as_of_ms=(AS_OF,), horizons_days=(30,), models=("prior",))
    made = evaluate(shoppers(users=300), one, FeatureSettings(), ["events"])
    text = render(made, one, ["shop.csv"], "GBP")
    assert (
        "at each cut-off" not in text and "by horizon" not in text and "minus that of" not in text
    )
    assert Page(text).open == []


def test_names_from_outside_are_escaped(asked: tuple[Report, Question]) -> None:
    report, question = asked
    noted = replace(report, notes=["! 3: <script>alert(1)</script>"])
    text = render(noted, question, ["<b>.csv"], "<i>")
    assert "<script>alert" not in text and "<b>.csv" not in text and "<i>" not in text
    chart = Chart("<a>", Linear(0, 1), LogOne(10), "<x>", '"y"')
    chart.line(Series("<s>", 0, [(0.5, 1.0)]))
    assert not re.search(r"<[asx]>", chart.svg())
    assert "<m>" not in forest("t", [("<m>", 0, 1.0, 0.5, 2.0)], None)


def test_groups_are_counted_once_however_many_seeds_and_models(
    asked: tuple[Report, Question],
) -> None:
    report, question = asked
    found = {row["group"]: row["users"] for row in Horizon.of(report, question, 30).groups()}
    here = [run for run in report.runs if run["horizon_days"] == 30 and run["model"] == "prior"]
    assert found["buyers"] == sum(run["users"] for run in here)


def test_a_page_that_cannot_be_written_is_said_so(
    asked: tuple[Report, Question], tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="name another file"):
        write(tmp_path / "no" / "where.html", *asked, ["shop.csv"], "GBP")
