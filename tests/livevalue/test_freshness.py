"""`livevalue evaluate --staleness` and `--anchor first_event`, as people type them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from tests.livevalue.asking import Ask, ask
from tests.scoring.logs import shoppers

__all__ = ["ask"]

SHOP = ("--type", "purchase", "--columns", "user_id=customer,event_time=when,amount=total")
ASKED = ("--as-of", "1970-03-20", "--horizon", "30d", "--models", "prior")


def write_shop(path: Path) -> str:
    """Orders and refunds under a shop's own column names."""
    lines = ["customer,when,total"]
    for _, batch in shoppers(users=120):
        for row, event in zip(batch.user, batch.events, strict=True):
            when = datetime.fromtimestamp(int(event["time_ms"]) / 1000, UTC).isoformat()
            lines.append(f"{batch.users[row]},{when},{int(event['value_micro']) / 1e6:.2f}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_staleness_and_lifetime_are_rows_of_the_json_and_tables_for_people(
    tmp_path: Path, ask: Ask
) -> None:
    shop, out = write_shop(tmp_path / "shop.csv"), tmp_path / "out.json"
    more = ("--staleness", "0s,7d", "--anchor", "first_event", "--ages", "1d", "--json", str(out))
    done = ask("evaluate", shop, *SHOP, *ASKED, *more)
    assert done.code == 0, done.err
    found = json.loads(out.read_text())
    assert {"runs", "comparisons", "notes", "staleness", "lifetime"} <= set(found)
    assert {row["stale"] for row in found["staleness"]} == {"0s", "7d"}
    assert {row["rows"] for row in found["staleness"]} == {"calendar", "event"}
    assert {row["model"] for row in found["lifetime"]} == {"prior", "spent"}
    for word in ("calendar rows, 30 days ahead", "unseen", "beyond spent"):
        assert word in done.err + done.out


def test_what_is_left_out_or_trained_otherwise_is_noted(tmp_path: Path, ask: Ask) -> None:
    shop, out = write_shop(tmp_path / "shop.csv"), tmp_path / "out.json"
    words = (*ASKED[:-1], "linear,rfm", "--staleness", "1d", "--json", str(out))
    done = ask("evaluate", shop, *SHOP, *words, LIVEVALUE_TRAINING__OPTIMIZER="sgd")
    assert done.code == 0, done.err
    notes = json.loads(out.read_text())["notes"]
    assert "linear does not take training.optimizer: trained without" in notes
    assert "rfm cannot be asked at any instant: left out" in notes
    assert "the log holds no arrival times: events count as arrived at once" in notes
    assert "rfm cannot be asked" in done.out + done.err


def test_a_question_that_nobody_of_the_log_answers_is_refused(tmp_path: Path, ask: Ask) -> None:
    shop = write_shop(tmp_path / "shop.csv")
    done = ask("evaluate", shop, *SHOP, *ASKED, "--anchor", "first_event", "--ages", "900d")
    assert done.code == 1
    assert "fewer than 20 users who spent reach one of the --ages" in done.err
    words = (*ASKED, "--staleness", "1h", "--population", "prospects")
    done = ask("evaluate", shop, *SHOP, *words)
    assert done.code == 1
    assert "another --population" in done.err


def test_what_is_no_span_ends_with_an_example(tmp_path: Path, ask: Ask) -> None:
    shop = write_shop(tmp_path / "shop.csv")
    done = ask("evaluate", shop, *SHOP, *ASKED, "--staleness", "1w")
    assert done.code == 1
    assert "1d+silence" in done.err
