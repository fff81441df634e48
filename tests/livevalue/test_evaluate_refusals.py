"""What `livevalue evaluate` cannot answer: exit code 1, and one line that says what to do."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.livevalue.asking import Ask, Said, ask

__all__ = ["ask"]

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
ASKED = ("--type", "purchase", "--as-of", "2024-05-01", "--horizon", "30d")
FAST = ("--models", "past_spend,pareto_gg")

Row = tuple[str, float, str]  # user, day, amount


def write(path: Path, rows: list[Row], columns: str = "user_id,event_time,amount") -> None:
    """A file as a shop exports it; further columns are in the amount."""
    lines = [columns]
    for user, day, amount in rows:
        lines.append(f"{user},{(BEGIN + timedelta(days=day)).isoformat()},{amount}")
    path.write_text("\n".join(lines) + "\n")


def orders(users: int = 40, days: int = 180, amount: str = "{0}.5") -> list[Row]:
    """Users who each order every so many days, for a price of their own."""
    return [
        (f"u{u}", float(day), amount.format(5 + u % 7))
        for u in range(users)
        for day in range(u % 20, days, 6 + u % 9)
    ]


def refused(said: Said, *words: str) -> None:
    assert said.code == 1, said.err
    assert said.err.startswith("livevalue: ") or "\nlivevalue: " in said.err
    for word in words:
        assert word in said.err, said.err


def test_a_horizon_that_hardly_anybody_teaches_is_not_judged(ask: Ask, tmp_path: Path) -> None:
    write(tmp_path / "shop.csv", orders())
    early = ("--train-cutoffs", "2024-01-03..2024-01-03/1d")
    said = ask("evaluate", "shop.csv", *ASKED, *early, "--models", "linear")
    refused(said, "needs 10 users", "there are 4 for 7 days, 4 for 30 days", "--train-cutoffs")


def test_what_is_asked_twice_is_answered_once(ask: Ask, tmp_path: Path) -> None:
    write(tmp_path / "shop.csv", orders())
    words = ("--as-of", "2024-05-01,2024-05-01T00:00:00Z", "--horizon", "30d,30d")
    said = ask("evaluate", "shop.csv", *ASKED, *words, *FAST, "--json", "found.json")
    assert said.code == 0, said.err
    assert len(json.loads((tmp_path / "found.json").read_text())["runs"]) == 2


def test_what_is_judged_here_is_answered_otherwise(ask: Ask, tmp_path: Path) -> None:
    """The log of the refusals below, without what they spoil."""
    write(tmp_path / "shop.csv", orders())
    said = ask("evaluate", "shop.csv", *ASKED, *FAST, "--json", "found.json")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert [run["model"] for run in found["runs"]] == ["past_spend", "pareto_gg"]
    assert found["runs"][0]["population"] == "buyers"
    assert found["notes"] == ["the log holds no arrival times: events count as arrived at once"]
    rows = [
        (u, d, f"{a},{(BEGIN + timedelta(days=d, hours=2)).isoformat()}") for u, d, a in orders()
    ]
    nobody = [("", day, rest) for _, day, rest in rows[:2]]
    write(tmp_path / "shop.csv", rows + nobody, "user_id,event_time,amount,log_time")
    said = ask("evaluate", "shop.csv", *ASKED, *FAST, "--json", "found.json")
    assert said.code == 0, said.err
    (note,) = json.loads((tmp_path / "found.json").read_text())["notes"]
    assert note == "anonymous: 2 rows without a user left out"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--as-of", "2024-06-20", "--horizon", "90d"), ("past the log's end", "earlier --as-of")),
        (("--as-of", "2023-01-01"), ("nothing had arrived before", "later --as-of")),
        (("--as-of", "2024-01-20", "--models", "linear"), ("begins before the log does",)),
        (("--as-of", "2024-01-20", "--models", "rfm"), ("begins before the log does",)),
        (("--models", "oracle"), ("no model is called 'oracle'", "pareto_gg")),
        (("--as-of", "2024-07-20", "--horizon", "1d"), ("1 day from 2024-07-20 reaches past",)),
        (("--population", "prospects"), ("0 prospects", "40 buyers", "another --population")),
        (("--as-of", "2024-01-02"), ("2 buyers before 2024-01-02", "2 users", "0 prospects")),
        (("--train-cutoffs", "2024-04-20..2024-04-30/5d", "--models", "linear"), ("earlier --tr",)),
    ],
)
def test_a_question_that_the_log_cannot_answer(
    ask: Ask, tmp_path: Path, words: tuple[str, ...], says: tuple[str, ...]
) -> None:
    write(tmp_path / "shop.csv", orders())
    refused(ask("evaluate", "shop.csv", *ASKED, *FAST, *words), *says)


def test_a_log_too_small_for_a_net(ask: Ask, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training needs the extra `train`")
    write(tmp_path / "shop.csv", orders(users=12, days=160)[::4])
    refused(
        ask("evaluate", "shop.csv", *ASKED, "--models", "served"), "fewer than 200", "a longer log"
    )


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (orders(users=1), ("one user alone", "--columns")),
        (orders(amount="-{0}.5"), ("refunds", "no order", "--columns amount")),
        (orders(amount="10.00"), ("the same value, 10", "LIVEVALUE_RETRAIN__FLAT_PRICES")),
        (orders(users=6), ("6 buyers", "10 or more")),
        ([(u, d, a) for u, d, a in orders() if d < 100], ("past the log's end",)),
        ([(u, d, a) for u, d, a in orders() if d < 100 or d > 170], ("none of 40 buyers spent",)),
    ],
    ids=["one user", "all refunds", "constant values", "few users", "short", "nobody spent"],
)
def test_a_log_from_which_nothing_can_be_told(
    ask: Ask, tmp_path: Path, rows: list[Row], says: tuple[str, ...]
) -> None:
    write(tmp_path / "shop.csv", rows)
    refused(ask("evaluate", "shop.csv", *ASKED, *FAST), *says)


def test_one_price_is_judged_where_the_settings_say_that_it_is_the_price(
    ask: Ask, tmp_path: Path
) -> None:
    write(tmp_path / "shop.csv", orders(amount="10.00"))
    said = ask(
        "evaluate",
        *("shop.csv", *ASKED, "--models", "pareto_gg,bg_gg,rfm,past_spend,linear,prior"),
        *("--json", "-"),
        LIVEVALUE_RETRAIN__FLAT_PRICES="true",
    )
    assert said.code == 0, said.err
    runs = json.loads(said.out)["runs"]
    assert all(run["metrics"]["ngini"] is not None for run in runs)


def test_a_log_without_purchases(ask: Ask, tmp_path: Path) -> None:
    write(tmp_path / "looks.csv", [(u, d, "") for u, d, _ in orders()])
    said = ask("evaluate", "looks.csv", "--type", "browse", *ASKED[2:], *FAST)
    refused(said, "no purchase", "--columns")


def test_a_mix_of_currencies_is_not_judged_by_what_is_left(ask: Ask, tmp_path: Path) -> None:
    rows = [(u, d, f"{a},{'USD' if i % 3 else 'EUR'}") for i, (u, d, a) in enumerate(orders())]
    write(tmp_path / "mixed.csv", rows, "user_id,event_time,amount,currency")
    refused(
        ask("evaluate", "mixed.csv", *ASKED, *FAST, LIVEVALUE_VALUE__CURRENCY="EUR"),
        "mixes currencies",
        "LIVEVALUE_VALUE__RATES",
    )


def test_settings_that_a_family_does_not_take_are_told(ask: Ask, tmp_path: Path) -> None:
    write(tmp_path / "shop.csv", orders())
    told = {"LIVEVALUE_TRAINING__OPTIMIZER": "sgd"}
    words = ("evaluate", "shop.csv", *ASKED, "--models")
    said = ask(*words, "prior,linear", "--json", "found.json", **told)
    assert said.code == 0, said.err
    note = "linear does not take training.optimizer: trained without"
    assert note in json.loads((tmp_path / "found.json").read_text())["notes"]
    assert f"note: {note}" in said.out
    refused(
        ask(*words, "served", LIVEVALUE_TRAINING__FAMILY="linear", **told),
        "'linear' does not take what is set of training.optimizer (mingru, gru, ",
    )


@pytest.mark.parametrize("kind", [(), ("--staleness", "1h"), ("--anchor", "first_event")])
def test_what_needs_no_log_is_refused_before_one_is_read(ask: Ask, kind: tuple[str, ...]) -> None:
    words = ("evaluate", "nowhere.csv", *ASKED, *kind, "--models")
    refused(ask(*words, "prior,oracle"), "no model is called 'oracle'")
    if kind:
        refused(ask(*words, "pareto_gg"), "name one of served, mingru")
    told = {"LIVEVALUE_TRAINING__FAMILY": "linear", "LIVEVALUE_TRAINING__OPTIMIZER": "sgd"}
    refused(ask(*words, "served", **told), "'linear' does not take what is set of training.opt")


def test_a_page_that_cannot_be_written_is_refused_before_the_work(ask: Ask, tmp_path: Path) -> None:
    write(tmp_path / "shop.csv", orders())
    said = ask("evaluate", "shop.csv", *ASKED, *FAST, "--html", "no/such/folder/page.html")
    refused(said, "page.html", "name another file")
    assert "pareto_gg" not in said.err


def test_a_file_that_is_not_there_and_a_question_without_a_moment(ask: Ask) -> None:
    refused(ask("evaluate", "nowhere.csv", *ASKED), "nowhere.csv")
    said = ask("evaluate", "nowhere.csv")
    assert said.code == 2 and "--as-of" in said.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--target-share", "1"), "--target-share"),
        (("--threshold", "much"), "--threshold"),
        (("--horizon", "3h"), "write 28d"),
        (("--label-horizon", "60d", "--staleness", "1h"), "--label-horizon"),
        (("--html", "report.html", "--staleness", "1h"), "--html goes with neither"),
        (("--html", "report.html", "--anchor", "first_event"), "--html goes with neither"),
        (("--as-of", "yesterday"), "no date or time"),
        (("--as-of", ","), "one moment and one span at least"),
        (("--horizon", ","), "one moment and one span at least"),
        (("--threshold", "0"), "give one above 0"),
        (("--threshold", "nan"), "give one above 0"),
        (("--threshold", "5", "--staleness", "1h"), "--threshold goes with neither"),
        (("--seeds", "2", "--anchor", "first_event"), "--seeds goes with neither"),
    ],
)
def test_wrong_words_are_wrong_usage(
    ask: Ask, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    said = ask("evaluate", "shop.csv", *ASKED, *words)
    assert said.code == 2 and says in said.err
