"""What of a log was not taken: counted by reason, the first places named.

Every command that reads SRC says it in the same words and the same fields of its JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from featurestore.wording import counted
from livevalue.output import Refused
from streams.log import FileLog

if TYPE_CHECKING:
    from featurestore.columns import EventBatch
    from livevalue.sources import Source

MIXED = 0.01  # share of a log in currencies without a rate, beyond which nothing is learned of it
_FIRST = 5  # rejections that are shown with their places
_PARKED = ("late", "conflict", "future")  # not folded, by the log's clock or by what it holds


def rejections(counts: Mapping[str, int], files: FileLog | None = None) -> dict[str, Any]:
    """`rejected`, `reasons` and, of files, `anonymous` and `first_rejections`.

    counts: what a replay counted; other things may stand among it.

    >>> rejections({"applied": 9, "late": 1, "rejected_not_json": 2})
    {'rejected': 3, 'reasons': {'not_json': 2, 'late': 1}}
    """
    reasons = Counter({name: counts.get(name, 0) for name in _PARKED})
    reasons.update(_by_reason(counts))
    if files is not None:
        reasons.update(_by_reason(files.counts))
    facts: dict[str, Any] = {
        "rejected": reasons.total(),
        "reasons": {name: n for name, n in reasons.most_common() if n},
    }
    if files is not None:
        facts["anonymous"] = files.counts["anonymous"]
        facts["first_rejections"] = [
            {"place": r.place, "reason": str(r.reason), "detail": r.detail}
            for r in files.rejections[:_FIRST]
        ]
    return facts


def refuse_mixed(facts: Mapping[str, Any], taken: int) -> None:
    """Refused where much of a log of `taken` events is in currencies without a rate.

    Such an event is none (a dead letter): figures of the rest would pass for those of all.
    """
    foreign = facts["reasons"].get("unknown_currency", 0)
    if foreign > MIXED * (taken + foreign):
        raise Refused(
            f"the log mixes currencies: {foreign:,} of {counted(taken + foreign, 'event')}"
            f" {'is' if foreign == 1 else 'are'} in one without a rate; set"
            " LIVEVALUE_VALUE__RATES, or LIVEVALUE_VALUE__CURRENCY to what"
            " the log is in, or give a log of one currency"
        )


def readings(source: Source) -> Callable[[], Iterator[tuple[int, EventBatch]]]:
    """The log, as often as it is asked for; Refused if the first reading shows mixed currencies.

    What has another currency and no rate is no event (a dead letter): a model of the rest would
    pass for one of all.
    """
    taken = 0

    def counted() -> Iterator[tuple[int, EventBatch]]:
        nonlocal taken
        taken = 0
        for partition, batch in source.batches():
            taken += batch.size
            yield partition, batch
        refuse_mixed(source.rejections(), taken)

    return counted


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The same for people, after what to know of the topics; none where there is nothing."""
    for warning in facts.get("warnings", ()):
        yield f"! {warning}"
    if facts["reasons"]:
        by_reason = ", ".join(f"{n:,} {reason}" for reason, n in facts["reasons"].items())
        yield f"rejected: {by_reason}"
    for row in facts.get("first_rejections", ()):
        yield f"! {row['place']}: {row['reason']}: {row['detail']}"
    if without := facts.get("anonymous", 0):
        yield f"anonymous: {counted(without, 'row')} without a user left out"


def totals(facts: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and the one row of a table: the facts that are told in no other line."""
    elsewhere = ("reasons", "first_rejections", "warnings", "anonymous")
    shown = {name: n for name, n in facts.items() if name not in elsewhere}
    return list(shown), [list(shown.values())]


def _by_reason(counts: Mapping[str, int]) -> Counter[str]:
    said = "rejected_"
    return Counter({name[len(said) :]: n for name, n in counts.items() if name.startswith(said)})
