"""For the same log: digest after live processing = replay = backfill, and verify finds nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest

from livevalue.embedded import Stack
from livevalue.jobs.storing import archive_log
from streams import archive as archiving
from tests.e2e.deployment import Deployment
from tests.parity.nasty import Quiet, nasty
from tests.parity.onstack import built, live, process, replayed, send, serve, shaped, verified
from tests.parity.playing import generation

CASES = [
    pytest.param(True, 1, 17, Quiet(), id="mixed-1"),
    pytest.param(True, 3, 4096, Quiet(), id="mixed-3"),
    pytest.param(True, 8, 4096, Quiet(), id="mixed-8"),
    pytest.param(False, 1, 4096, Quiet(never="interaction"), id="three-1-one-never-spoke"),
    pytest.param(False, 3, 17, Quiet(idle="interaction"), id="three-3-one-falls-silent"),
    pytest.param(False, 8, 4096, Quiet(), id="three-8"),
]


@pytest.mark.parametrize(("mixed", "partitions", "batch", "quiet"), CASES)
def test_live_replay_backfill_and_archive_agree(
    stack: Stack,
    topic_prefix: str,
    tmp_path: Path,
    mixed: bool,
    partitions: int,
    batch: int,
    quiet: Quiet,
) -> None:
    # A silent source is idle soon, so that events of others settle without it; one that is only
    # behind is waited for.
    silent = quiet != Quiet()
    settings = shaped(
        stack,
        topic_prefix,
        mixed=mixed,
        partitions=partitions,
        batch=batch,
        idle_after_s=4.0 if silent else 3600.0,
        # No source that has more to say is this far behind: its lateness is 72 hours.
        idle_behind=timedelta(hours=96),
    )
    log = nasty(2500, users=80, seed=20 + partitions, quiet=quiet)
    with Deployment(settings, tmp_path) as deployment:
        serve(settings, generation())
        worker = deployment.start()
        if silent:
            send(deployment, log[:1500])
            deployment.settle()
            time.sleep(4.5)
            send(deployment, log[1500:])
        elif not mixed:  # one topic is read far ahead of the others
            send(deployment, [sent for sent in log if sent.type == "purchase"])
            deployment.settle()
            send(deployment, [sent for sent in log if sent.type != "purchase"])
        else:
            send(deployment, log)
        deployment.settle()
        if silent:
            assert any("1" in mark["idle"] for mark in deployment.watermarks().values())
        now = live(settings)
        assert now["users"] > 70
        assert now["applied"] > 2000
        assert replayed(settings, "kafka")["digest"] == now["digest"]
        assert built(settings, "kafka")["digest"] == now["digest"]
        found = verified(settings)
        assert found["different"] == 0, found
        assert found["users"] >= now["users"]
        facts = asyncio.run(archive_log(settings, tmp_path / "archive"))
        assert facts["events"] == len(log)
        assert replayed(settings, tmp_path / "archive")["digest"] == now["digest"]
        assert worker.stop() == 0


def test_what_was_killed_in_the_middle_goes_on_where_it_stopped(
    stack: Stack, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=8)
    log = nasty(2500, users=80, seed=7)
    folder = tmp_path / "archive"
    with Deployment(settings, tmp_path) as deployment:
        serve(settings, generation())
        send(deployment, log[:1500])
        expected_half = replayed(settings, "kafka")["digest"]
        # Small files, so that there is a middle; the archiver dies after a few of them.
        monkeypatch.setattr(archiving, "_ROWS", 40)

        class Died(Exception):
            pass

        def die(events: int) -> None:
            if events > 500:
                raise Died

        with pytest.raises(Died):
            asyncio.run(archive_log(settings, folder, die))
        files = len(list(folder.rglob("*.parquet")))
        assert asyncio.run(archive_log(settings, folder))["events"] < 1500
        assert len(list(folder.rglob("*.parquet"))) > files > 3
        assert replayed(settings, folder)["digest"] == expected_half
        send(deployment, log[1500:])
        expected = replayed(settings, "kafka")
        # The archive's end is where the topics go on, whatever they hold before it.
        assert replayed(settings, folder, "kafka")["digest"] == expected["digest"]
        asyncio.run(archive_log(settings, folder))
        assert replayed(settings, folder)["digest"] == expected["digest"]

        job = process(deployment, "backfill", "kafka", "--store", "aside", "--jobs", "1")
        until = time.monotonic() + 60
        while not deployment.watermarks("aside") and time.monotonic() < until:
            time.sleep(0.002)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        assert deployment.watermarks("aside")
        resumed = built(settings, "kafka")
        assert resumed["digest"] == expected["digest"]
        assert resumed["events"] < expected["events"]
