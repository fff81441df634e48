"""The codec under fire: 12,000 mutants, what Hypothesis draws, and the corpus, through both paths.

Equal must be everything that a record becomes: which are taken and which rejected, each column,
erases, and of each rejection the reason and its words. So nobody can tell by a dead letter or a
state which of the two paths read a record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.deadletter import Reason
from tests.parity.bad import Bad, corpus, mutants
from tests.parity.drawn import records
from tests.parity.nasty import START_MS
from tests.streams.coded import CODECS, Record, same

EACH = 3000  # mutants for each of the four codecs


def _read(rows: Sequence[Bad]) -> list[Record]:
    # Headers without a value are what a broker gives, though the type says otherwise.
    return [
        Record(row.key, row.value, at, START_MS + at, row.headers)  # type: ignore[arg-type]
        for at, row in enumerate(rows)
    ]


@pytest.mark.parametrize("which", range(len(CODECS)))
def test_both_paths_say_the_same_of_thousands_of_mutants(which: int) -> None:
    codec = CODECS[which]
    rows = list(mutants(EACH, seed=which))
    reasons: Counter[str] = Counter()
    taken = 0
    for source in range(1 if which == 1 else 3):
        records = _read([r for r in rows if which == 1 or r.source == source])
        for at in range(0, len(records), 250):
            run = records[at : at + 250]
            fast, slow = codec.decode(source, 0, run), codec.decode_slow(source, 0, run)
            same(fast, slow)
            batch = fast.batch
            assert batch.size + len(batch.erases) + len(fast.rejected) == len(run)
            taken += batch.size
            reasons.update(one.reason for one in fast.rejected)
            for one in fast.rejected:
                assert 0 < len(one.detail) <= 200
                one.detail.encode()
    # Mutants that are all refused, or for one reason, would prove little.
    assert taken > EACH // 20
    assert not reasons[Reason.UNREADABLE]
    found = {name for name, count in reasons.items() if count >= 5}
    assert found >= {"not_json", "not_object", "missing_field", "invalid_field", "wrong_key"}


@given(st.lists(records(), min_size=1, max_size=12), st.sampled_from(range(len(CODECS))))
def test_both_paths_say_the_same_of_records_whose_structure_is_hurt(
    rows: list[Bad], which: int
) -> None:
    codec = CODECS[which]
    for source in range(1 if which == 1 else 3):
        run = _read([row for row in rows if which == 1 or row.source == source])
        fast, slow = codec.decode(source, 0, run), codec.decode_slow(source, 0, run)
        same(fast, slow)
        assert fast.batch.size + len(fast.batch.erases) + len(fast.rejected) == len(run)
        assert Reason.UNREADABLE not in {one.reason for one in fast.rejected}


def test_a_record_is_read_alone_as_it_is_among_others() -> None:
    rows = [row for row in mutants(1500, seed=7) if row.source == 1]
    records = _read(rows)
    together = CODECS[0].decode(1, 0, records)
    alone = [CODECS[0].decode(1, 0, [record]) for record in records]
    assert [no for one in alone for no in one.rejected] == together.rejected
    assert b"".join(one.batch.events.tobytes() for one in alone) == together.batch.events.tobytes()


def test_the_corpus_has_its_reasons_on_both_paths() -> None:
    said = {}
    for row in corpus():
        (record,) = _read([row])
        fast = CODECS[0].decode(row.source, 0, [record])
        same(fast, CODECS[0].decode_slow(row.source, 0, [record]))
        said[row.name] = fast.rejected[0].reason if fast.rejected else ""
    # Too far ahead and misrouted are of a deployment with clocks and several partitions.
    wrong = {
        row.name: (said[row.name], row.reason)
        for row in corpus()
        if said[row.name] != row.reason and row.reason not in ("future", "misrouted")
    }
    assert not wrong
