"""Mappings of one's own, and the report by which one mends them."""

from __future__ import annotations

from pathlib import Path

import pytest

from livevalue.mapping.engine import Mapper
from livevalue.mapping.report import Report
from livevalue.mapping.spec import load
from livevalue.output import Refused
from tests.livevalue.mapped import one, track


def test_a_mapping_of_one_s_own_extends_one_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(
        'extends = "segment"\nname = "shop"\n'
        '[money]\nunit = "minor"\n'
        '[[rules]]\nnames = ["Button Pressed"]\ntype = "interaction"\naction = "press"\n'
        '[[rules]]\nnames = ["Product Viewed"]\ntype = "ignore"\n'
        '[[rules]]\nnames = ["Ticket Bought"]\ntype = "purchase"\nmoney_unit = "micro"\n'
        'id = { paths = ["properties.order_id"] }\n'
    )
    mapper = Mapper(load(str(path)))
    pressed = one(track("Button Pressed"), mapper).event
    assert pressed is not None
    assert pressed["action"] == "press"
    assert one(track("Product Viewed"), mapper).status == "ignored"
    assert one(track("Order Completed", revenue=1999, currency="EUR"), mapper).micro == 19_990_000
    bought = one(track("Ticket Bought", revenue=4990000, currency="EUR", order_id="o-1"), mapper)
    assert bought.event is not None
    assert (bought.micro, bought.event["event_id"]) == (4_990_000, "o-1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('extends = "segment"\n[money]\nunits = "minor"\n', "money.units"),
        ('extends = "segment"\n[[rules]]\nnames = ["a"]\ntype = "buy"\n', "rules.0.type"),
        ('extends = "nobody"\n', "no mapping 'nobody'"),
        ("= 5", "is no TOML"),
        ('name = "x"\n', "event_name"),
    ],
)
def test_a_wrong_mapping_is_refused_by_the_name_of_what_is_wrong(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(Refused, match=said.replace(".", r"\.")):
        load(str(path))


def test_a_mapping_that_extends_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.toml"
    path.write_text(f'extends = "{path}"\n')
    with pytest.raises(Refused, match="circle"):
        load(str(path))


def test_the_worst_records_are_lost_money_first_then_the_most_frequent() -> None:
    mapper, report = Mapper(load("segment")), Report()
    for at in range(30):
        bad = track("Product Viewed", {"timestamp": "yesterday"})
        report.add(f"topic/0:{at}", mapper.map(bad))
    report.add("topic/0:30", mapper.map(track("Order Completed", revenue=5)))
    report.add("topic/0:31", mapper.map(track("Button Pressed")))
    worst = report.worst()
    assert [bad["reason"] for bad in worst] == ["missing_currency"] + ["invalid_time"] * 9
    assert (worst[0]["at"], worst[1]["like_it"]) == ("topic/0:30", 30)
    assert "--currency" in worst[0]["change"]
    rows = {row["name"]: row for row in report.names()}
    assert (rows["Product Viewed"]["parked"], rows["Button Pressed"]["ignored"]) == (30, 1)
    assert (rows["Product Viewed"]["in_mapping"], rows["Button Pressed"]["in_mapping"]) == (
        True,
        False,
    )
