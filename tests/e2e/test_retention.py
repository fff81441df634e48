"""Retention overtakes a worker, running and stopped, and topics get more partitions under it.

One deployment, whose worker is stopped (SIGSTOP) while the log loses what it has not read.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from livevalue.embedded import Stack
from livevalue.output import Refused
from streams.errors import TopicError
from tests.e2e.deployment import Deployment, deployment_settings, send_all, some_events
from tests.e2e.losses import (
    admin,
    ask,
    began,
    delete_before,
    ended,
    halted,
    held_cents,
    last_scores,
    livevalue,
    noticed,
    recover,
    said_once_and_last,
    spent_cents,
    until,
)

pytestmark = pytest.mark.long

_DATABASE = 15


def purchases(deployment: Deployment, partition: int) -> dict[int, tuple[str, int]]:
    """User and cents of each purchase of a partition, by its offset."""
    return {
        r.offset: (r.key.decode(), round(float(json.loads(r.value)["amount"]) * 100))
        for r in deployment.read(deployment.sources[1])
        if r.partition == partition
    }


@pytest.fixture
def deployment(stack: Stack, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{_DATABASE}"
    settings = deployment_settings(stack.bootstrap, url, topic_prefix)
    with Deployment(settings, tmp_path) as made:
        yield made


def test_what_retention_took_unread_halts_its_partition_alone_and_is_never_skipped_unsaid(
    deployment: Deployment,
) -> None:
    events = list(some_events(1200, 60))
    send_all(deployment, events[:600])
    worker = deployment.start(LIVEVALUE_WORKER__METRICS_PORT="0")
    deployment.settle()

    # A running worker is overtaken in one topic of partition 0. A fetch that was under way may have
    # brought it all the same: then nothing is lost, and it is tried again.
    for low in range(600, 900, 100):
        worker.signal(signal.SIGSTOP)
        at = deployment.positions()
        send_all(deployment, events[low : low + 10])
        send_all(deployment, events[low + 10 : low + 100])
        bought = purchases(deployment, 0)
        cut = max(bought) - 4
        assert cut > at[0, 1] + 5
        delete_before(deployment, {(0, 1): cut})
        awake = datetime.now(UTC)
        worker.signal(signal.SIGCONT)
        until(lambda: halted(worker) or deployment.positions() == deployment.ends(), 30)
        if halted(worker):
            break
    noticed(worker.lines("partition halted"), awake)
    (partition, said), *others = halted(worker).items()
    assert partition == 0 and not others
    assert f"{deployment.sources[1]}/0" in said
    assert "livevalue recover rebuild --dry-run" in said
    assert "livevalue recover adopt --dry-run" in said
    assert ask(worker, "/readyz") == (503, "halted: [0]\n")
    assert ask(worker, "/livez")[0] == 200
    assert 'livevalue_halted{partition="0"} 1.0' in ask(worker, "/metrics")[1]
    assert 'livevalue_halted{partition="1"}' not in ask(worker, "/metrics")[1]
    # The other partition goes on.
    rest = events[low + 100 :]
    send_all(deployment, rest)
    ends = deployment.ends()
    until(lambda: all(deployment.positions()[1, s] == ends[1, s] for s in range(3)), 30)
    stood = deployment.positions()
    assert at[0, 1] <= stood[0, 1] < cut
    plan = recover(deployment, "adopt", dry_run=True)
    assert [row["changes"] for row in plan] == [True, False]
    assert plan[0]["to"] == [stood[0, 0], cut, stood[0, 2]]
    assert f"has lost {cut - stood[0, 1]} positions that were never folded" in plan[0]["notes"][0]
    assert worker.stop() == 0

    # Now in partition 1, while no worker runs: the next one halts both, and ends.
    more = list(some_events(200, 60, seed=3, first=5000))
    send_all(deployment, more)
    bought_too = purchases(deployment, 1)
    end = max(bought_too) + 1
    assert end > stood[1, 1] + 5
    delete_before(deployment, {(1, 1): end})
    worker = deployment.start("late")
    assert "retention deleted what was never folded" in ended(worker)
    assert sorted(halted(worker)) == [0, 1]
    noticed(worker.lines("partition halted"), began(worker))
    with pytest.raises(Refused, match="name the archive that holds it"):
        recover(deployment, "rebuild", dry_run=True)
    with pytest.raises(Refused, match="name the archive that holds it"):
        recover(deployment, "rebuild")
    wipe = recover(deployment, "wipe", dry_run=True)
    assert all(any("beginning is gone" in note for note in row["notes"]) for row in wipe)
    assert deployment.positions() == stood

    # What is lost is accepted, and nothing else is.
    plan = recover(deployment, "adopt", dry_run=True)
    assert recover(deployment, "adopt") == plan
    assert [row["to"][1] for row in plan] == [cut, end]
    worker = deployment.start("after")
    deployment.settle()
    wanted = spent_cents([*events, *more])
    for user, cents in (
        *(bought[n] for n in range(stood[0, 1], cut)),
        *(bought_too[n] for n in range(stood[1, 1], end)),
    ):
        wanted[user] -= cents
    assert held_cents(deployment) == wanted
    until(lambda: last_scores(deployment).keys() == wanted.keys(), 10)
    said_once_and_last(deployment)

    # More partitions than the settings say: users have moved, nothing more may be folded.
    asked = admin(deployment)
    asked.create_partitions({deployment.sources[0]: 3})
    more_than_said = datetime.now(UTC)
    asked.close()
    said = ended(worker)
    noticed(worker.lines("giving up"), more_than_said)
    assert "LIVEVALUE_KAFKA__PARTITIONS is 2" in said
    assert f"{deployment.sources[0]} (3)" in said and "livevalue backfill" in said
    assert "differ in their number of partitions" in livevalue(deployment, "run", code=1).stderr
    with pytest.raises(TopicError, match="differ in their number of partitions"):
        recover(deployment, "adopt", dry_run=True)
