"""A user without one event is the user whose log lacks it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.clock import Clocks
from featurestore.columns import NO_TIME
from featurestore.fold import fold
from featurestore.fold_settings import FoldSettings
from featurestore.state import States
from livevalue.jobs.explaining import refold, without_each
from scoring.scorer import Scorer
from streams.codec import Codec, merge
from streams.delivery import Simple
from streams.settings import KafkaSettings, Settings
from tests.parity.playing import generation

_DAY_MS = 86_400_000
_START_MS = 1_700_000_000_000
SETTINGS = Settings(kafka=KafkaSettings(mixed="events", partitions=1))
FOLD = FoldSettings.of(SETTINGS.features, SETTINGS.kafka.sources)


def _log() -> list[dict[str, Any]]:
    """Ten events of one user, the last four within the allowed lateness."""
    kinds: Sequence[dict[str, Any]] = (
        {"type": "browse", "category": "shoes"},
        {"type": "purchase", "amount": "12.50"},
        {"type": "interaction", "action": "cart_add"},
    )
    days = [0, 5, 9, 9.5, 20, 31, 38, 38.5, 39, 40]
    return [
        {"event_id": f"e{i}", "user_id": "ada", "event_time": _START_MS + int(d * _DAY_MS)}
        | kinds[i % 3]
        for i, d in enumerate(days)
    ]


def _folded(log: Sequence[dict[str, Any]]) -> tuple[States, npt.NDArray[np.float32], Scorer]:
    """State and the head's carry after the log, folded in two batches."""
    scorer = Scorer(generation(), SETTINGS.model, SETTINGS.features)
    states, clocks = States.empty(["ada"]), Clocks(np.array([NO_TIME]), np.array([False]))
    settled, head = scorer.start(1), scorer.start(1)
    for part in (log[:5], log[5:]):
        records = [
            Simple(i, b"ada", json.dumps(e).encode(), e["event_time"]) for i, e in enumerate(part)
        ]
        folded = fold(states, merge([Codec(SETTINGS).decode(0, 0, records)]), clocks, FOLD)
        settled, head = scorer.advance(folded, settled, head)
        states, clocks = folded.states, folded.clocks
    return states, np.stack([settled[0], head[0]]), scorer


def test_each_variant_is_the_fold_of_a_log_that_lacks_one_event() -> None:
    log = _log()
    states, carries, scorer = _folded(log)
    assert states.tail.lengths.tolist() == [4]
    variants, left = without_each(states)
    starts = np.repeat(carries[:1], len(variants.users), axis=0)
    variants, heads = refold(variants, starts, scorer, FOLD)
    assert variants.head[0] == states.head[0]
    np.testing.assert_allclose(heads[0], carries[1], rtol=1e-6)
    for row, missing in zip(left.tolist(), range(6, 10), strict=True):
        lacking, other, _ = _folded(log[:missing] + log[missing + 1 :])
        whole = lacking.head[0]
        for name in ("counts", "gross_micro", "orders", "id_hi", "id_lo", "last_ms", "decayed"):
            np.testing.assert_allclose(
                variants.head[name][row].astype(float), whole[name].astype(float), rtol=1e-9
            )
        np.testing.assert_allclose(heads[row], other[1], rtol=1e-5, atol=1e-6)
    assert variants.head[-1] == states.settled[0]
    np.testing.assert_array_equal(heads[-1], carries[0])
    assert not np.allclose(heads[0], heads[left[1]])  # a purchase steps the carry


def test_the_state_that_is_explained_stays_as_it_is() -> None:
    states, carries, scorer = _folded(_log())
    before = states.encode()
    variants, _ = without_each(states)
    refold(variants, np.repeat(carries[:1], len(variants.users), axis=0), scorer, FOLD)
    assert states.encode() == before
