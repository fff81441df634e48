"""`livevalue evaluate`, on files as people have them; what it refuses is beside this file."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer

from livevalue.commands.evaluate import parse_cutoffs, parse_days
from livevalue.moments import moment_ms
from tests.livevalue.asking import Ask, ask
from tests.scoring.logs import shoppers

__all__ = ["ask"]

ROOT = Path(__file__).resolve().parents[2]
CDNOW = ROOT.parent / "shared" / "data" / "cdnow" / "CDNOW_master.txt"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "livevalue.cli", "evaluate", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        )

    return run


def write_shoppers(path: Path) -> None:
    """Orders and refunds under a shop's own column names."""
    lines = ["customer,when,total"]
    for _, batch in shoppers(users=200):
        for row, event in zip(batch.user, batch.events, strict=True):
            when = datetime.fromtimestamp(int(event["time_ms"]) / 1000, UTC).isoformat()
            lines.append(f"{batch.users[row]},{when},{int(event['value_micro']) / 1e6:.2f}")
    path.write_text("\n".join(lines) + "\n")


SHOP = ("--type", "purchase", "--columns", "user_id=customer,event_time=when,amount=total")


def test_a_file_under_its_own_column_names_is_judged(run: Run, tmp_path: Path) -> None:
    write_shoppers(tmp_path / "shop.csv")
    said = ("--as-of", "1970-06-10", "--horizon", "30d", "--models", "prior,pareto_gg")
    done = run("shop.csv", *SHOP, *said, "--json", "-")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [run["model"] for run in found["runs"]] == ["prior", "pareto_gg"]
    assert found["runs"][0]["as_of"] == "1970-06-10T00:00:00Z"
    assert "pareto_gg" in done.stderr
    assert "nGini" in done.stderr


def test_click_through_is_told_where_the_log_has_pages_and_acts(ask: Ask, tmp_path: Path) -> None:
    """Regulars order weekly and put what they view into the cart; the others look and leave."""
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    lines = []

    def event(kind: str, user: int, minutes: float, **more: str) -> None:
        when = (begin + timedelta(minutes=minutes)).isoformat()
        lines.append(json.dumps({"type": kind, "user_id": f"u{user}", "event_time": when, **more}))

    for user in range(60):
        regular = user < 12
        for day in range(user % 7, 120, 7):
            event("browse", user, day * 1440)
            if regular or day < 40:
                event("interaction", user, day * 1440 + 5, action="cart_add")
            if regular or day < 14:
                event("purchase", user, day * 1440 + 90, amount=f"{20 + user % 5}.00")
    (tmp_path / "shop.jsonl").write_text("\n".join(lines) + "\n")
    said = ask(
        *("evaluate", "shop.jsonl", "--as-of", "2024-03-15", "--horizon", "28d"),
        *("--models", "pareto_gg", "--json", "-"),
    )
    assert said.code == 0, said.err
    found = json.loads(said.out)["runs"][0]["targeting"]
    assert found["click_through_reason"] is None
    assert found["targeted"] == {
        "users": 12,
        "conversion": 1.0,
        "views": 48,
        "click_through": 1.0,
    }
    assert found["untargeted"]["conversion"] == found["untargeted"]["click_through"] == 0


def test_several_cutoffs_are_shown_with_their_mean(ask: Ask, tmp_path: Path) -> None:
    write_shoppers(tmp_path / "shop.csv")
    words = ("--as-of", "1970-05-10,1970-06-10", "--horizon", "30d", "--models", "prior,past-spend")
    said = ask("evaluate", "shop.csv", *SHOP, *words, "--json", "found.json")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    pooled = json.loads((tmp_path / "found.json").read_text())["pooled"]
    at = lines.index("30 days, mean of 2 cut-offs")
    assert [row["model"] for row in pooled] == ["prior", "past_spend"]
    for row, line in zip(pooled, lines[at + 2 :], strict=False):
        assert line.split()[:2] == [row["model"], f"{row['metrics']['ngini']:.3f}"]
    short = ask("evaluate", "shop.csv", *SHOP, *words[:2], "--horizon", "1d", "--models", "prior")
    assert "1 day from 1970-05-10" in short.out
    assert "\n1 day, mean of 2 cut-offs\n" in short.out


def test_models_are_listed_without_a_log(run: Run) -> None:
    done = run("--models", "list")
    assert done.returncode == 0
    assert {"served", "pareto_gg", "bg_gg"} <= set(done.stdout.split())


def test_times_and_spans_are_read_as_people_write_them() -> None:
    assert moment_ms("1970-01-02") == moment_ms("1970-01-02T01:00:00+01:00") == 86_400_000
    assert parse_days("13w") == parse_days("91d") == 91
    assert [t // 86_400_000 for t in parse_cutoffs("1970-04-02..1970-07-02/13d")] == [
        *range(91, 183, 13)
    ]
    for wrong in ("0d", "3h", "-3d", "d"):
        with pytest.raises(typer.BadParameter):
            parse_days(wrong)
    with pytest.raises(typer.BadParameter, match="ends before it begins"):
        parse_cutoffs("1970-07-02..1970-04-02/13d")


@pytest.mark.slow
@pytest.mark.skipif(
    not CDNOW.is_file(), reason="CDNOW is an academic file that may not ship: ../shared/data/cdnow"
)
@pytest.mark.timeout(400)
def test_served_ranks_cdnow_and_keeps_its_level(run: Run, tmp_path: Path) -> None:
    """The figure that the product is held to: 13 weeks after week 39, nothing later seen."""
    pytest.importorskip("torch", reason="training needs the extra `train`")
    lines = ["customer,when,total"]
    for line in CDNOW.read_text().splitlines()[1:]:
        user, day, _, total = line.split()
        lines.append(f"{user},{day[:4]}-{day[4:6]}-{day[6:]}T00:00:00Z,{total}")
    (tmp_path / "cdnow.csv").write_text("\n".join(lines) + "\n")
    done = run(
        *("cdnow.csv", *SHOP, "--as-of", "1997-10-01", "--horizon", "91d"),
        *("--train-cutoffs", "1997-04-02..1997-07-02/13d", "--models", "served,bg_gg,pareto_gg"),
        *("--population", "all"),  # as the published figures: who only took things for nothing, too
        *("--json", "found.json"),
        timeout=390,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    metrics = {run["model"]: run["metrics"] for run in found["runs"]}
    assert found["runs"][0]["users"] == 23_570
    assert metrics["served"]["ngini"] >= 0.680
    assert 0.7 <= metrics["served"]["bias"] <= 1.3
    assert metrics["bg_gg"]["ngini"] == pytest.approx(0.639, abs=2e-3)
    assert metrics["pareto_gg"]["ngini"] == pytest.approx(0.685, abs=2e-3)
