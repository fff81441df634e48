"""Rules of cleaning: each has its name in the page, and a counter that rises."""

from __future__ import annotations

import json
from pathlib import Path

from featurestore.columns import Outcome
from streams.deadletter import Reason
from streams.metrics import Metrics
from tests.parity.nasty import laid, nasty
from tests.parity.playing import Played, cuts, generation, settings

PAGE = Path(__file__).parents[2] / "docs" / "cleaning.md"


def test_every_rule_that_takes_a_record_out_stands_in_the_page() -> None:
    page = PAGE.read_text()
    names = {str(reason) for reason in Reason}
    names |= {outcome.name.lower() for outcome in Outcome if outcome is not Outcome.APPLIED}
    assert not {name for name in names if f"`{name}`" not in page}


async def test_what_was_folded_without_an_id_is_counted() -> None:
    shape = settings(True, 1)
    log = laid(nasty(400, seed=4, erases=0), shape.kafka)
    played = await Played(shape, generation()).play(log, cuts(log, "random", 50, 1))
    sent = 0
    for records in log.values():
        for record in records:
            if record.value and record.value.startswith(b'{"type"'):
                sent += "event_id" not in json.loads(record.value)
    # Some of those without an id are late or of the future.
    assert 0 < played.counts["without_id"] <= sent
    metrics = Metrics()
    metrics.count(played.counts)
    found = metrics.registry.get_sample_value("livevalue_without_id_total")
    assert found == played.counts["without_id"]
