"""A log in files: sent to the topics, replayed from the files, or as the base of a store."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from livevalue.embedded import Stack
from livevalue.sending import send_all as send_records
from streams.errors import LogFileError, Stale
from streams.log import FileLog
from tests.e2e.deployment import START_MS, Deployment, send_all, some_events
from tests.parity.nasty import Sent, nasty
from tests.parity.onstack import built, live, replayed, serve, shaped, verified
from tests.parity.playing import generation


def as_line(sent: Sent) -> str | None:
    """A record as a line of JSONL; None for erases and for what is no event."""
    if not sent.value or not sent.value.startswith(b'{"type"'):
        return None
    return json.dumps({**json.loads(sent.value), "log_time": sent.timestamp})


@pytest.mark.parametrize("mixed", [True, False])
def test_the_same_log_in_files_and_in_topics_has_one_digest(
    stack: Stack, topic_prefix: str, tmp_path: Path, mixed: bool
) -> None:
    settings = shaped(stack, topic_prefix, mixed=mixed, partitions=3)
    lines = [line for sent in nasty(1200, users=50, seed=31) if (line := as_line(sent))]
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(lines))
    with Deployment(settings, tmp_path) as deployment:
        serve(settings, generation())
        assert send_records(settings, FileLog([file], settings).records()) == len(lines)
        deployment.start()
        deployment.settle()
        now = live(settings)
        from_file, from_topics = replayed(settings, file), replayed(settings, "kafka")
        assert from_file["digest"] == from_topics["digest"] == now["digest"]
        assert now["users"] == from_file["users"] > 40
        for count in ("events", "applied", "late", "duplicates"):
            assert from_file[count] == from_topics[count] > 0


def test_files_up_to_a_time_and_the_topics_from_there_count_each_event_once(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=8)
    # Few users: there are partitions of whom the file knows nobody.
    events = list(some_events(1600, 12, seed=5))
    cut_ms = START_MS + 1000 * 250
    file = tmp_path / "export.jsonl"
    kinds = ("browse", "purchase", "interaction")
    # The export reaches beyond the cut, and the topics hold what is before it.
    lines = [json.dumps({"type": kinds[s], **event}) for s, event in events[:1300]]
    file.write_text("\n".join(lines))
    until = datetime.fromtimestamp(cut_ms / 1000, UTC)
    with Deployment(settings, tmp_path) as deployment:
        serve(settings, generation())
        send_all(deployment, events[500:1400])
        begun = built(settings, file, "kafka", store="main", until=until)
        assert begun["applied"] == 1400
        again = built(settings, file, "kafka", store="main", until=until)
        assert (again["events"], again["digest"]) == (0, begun["digest"])
        other = tmp_path / "other.jsonl"
        other.write_text(lines[0])
        with pytest.raises(Stale, match="other files"):
            built(settings, other, store="main", until=until)
        deployment.start()
        deployment.settle()
        send_all(deployment, events[1400:])
        deployment.settle()
        whole = [json.dumps({"type": kinds[s], **event}) for s, event in events]
        everything = tmp_path / "everything.jsonl"
        everything.write_text("\n".join(whole))
        now = live(settings)
        assert now["digest"] == replayed(settings, everything)["digest"]
        assert now["applied"] == 1600
        with pytest.raises(LogFileError, match="--base"):
            verified(settings)
        found = verified(settings, base=[str(file)])
        assert found["different"] == 0, found
        assert found["users"] == 12
        # What was built aside was published once it served.
        for user in {str(event["user_id"]) for _, event in events}:
            assert deployment.redis.keys(f"lv:{{*}}:v:{user}"), user
