"""`replay`, `digest`, `verify`, `archive` as a person runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featurestore.partitioner import partition
from livevalue.embedded import Stack
from livevalue.rejections import lines
from livevalue.sources import FileOptions, Source, parse_columns
from streams.settings import Settings
from tests.e2e.deployment import Deployment, some_events
from tests.parity.onstack import command, process, serve, shaped
from tests.parity.playing import generation

CSV = """customer,total,when,order
ada,10.50,2011-09-10T12:00:00Z,1
ada,3.00,2011-09-10T12:00:00Z,1
bob,-2.00,2011-09-11T12:00:00Z,2
,4.00,2011-09-11T12:00:00Z,3
eve,much,2011-09-11T12:00:00Z,4
"""
MAPPED = "user_id=customer,amount=total,event_time=when,order_id=order"


def test_the_log_and_the_store_agree_in_what_the_commands_say(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=2)
    with Deployment(settings, tmp_path) as deployment:
        empty = command(deployment, "digest")
        assert (empty["users"], empty["applied"]) == (0, 0)
        # Asking changed nothing: a first start finds an empty Redis.
        assert not deployment.redis.keys("lv:*")
        serve(settings, generation())
        for source, event in some_events(600, 30):
            deployment.send(source, event)
        deployment.flush()
        worker = deployment.start()
        deployment.settle()
        now = command(deployment, "digest")
        assert (now["applied"], now["users"]) == (600, 30)
        again = command(deployment, "replay", "kafka")
        wanted = {"events": 600, "applied": 600, "rejected": 0, "late": 0, "duplicates": 0}
        assert again == {
            **wanted,
            "users": 30,
            "digest": now["digest"],
            "reasons": {},
            "warnings": [],
        }
        found = command(deployment, "verify")
        assert (found["users"], found["different"]) == (30, 0)

        assert command(deployment, "archive", "kept")["events"] == 600
        assert command(deployment, "archive", "kept") == {
            "files": 0,
            "events": 0,
            "warnings": [],
        }
        assert command(deployment, "replay", "kept")["digest"] == now["digest"]
        source, event = next(iter(some_events(1, 1, seed=2, first=600)))
        deployment.send(source, event)
        deployment.settle()
        assert "1 event in 1 new file, " in deployment.command("archive", "kept").stdout
        said = command(deployment, "replay", "nowhere", code=1)["said"]
        assert "neither a file, nor a folder" in said and said.endswith(": correct SRC")

        assert worker.stop() == 0
        p = partition("u1", 2, settings.kafka.partitioner)
        deployment.redis.delete(f"lv:main:{{{p}}}:s:u1")
        wrong: dict[str, Any] = command(deployment, "verify", code=1)
        assert wrong["different"] == 1
        assert wrong["first_differences"][0]["user_id"] == "u1"


def test_a_file_is_replayed_without_redis_and_kafka(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=2)
    (tmp_path / "orders.csv").write_text(CSV)
    with Deployment(settings, tmp_path) as deployment:
        deployment.settings = settings.model_copy(
            update={
                "kafka": settings.kafka.model_copy(update={"bootstrap": "127.0.0.1:1"}),
                "store": settings.store.model_copy(
                    update={"url": type(settings.store.url)("redis://127.0.0.1:1/0")}
                ),
            }
        )
        options = ["orders.csv", "--type", "purchase", "--columns", MAPPED]
        found = command(deployment, "replay", *options)
        digest = found.pop("digest")
        assert found == {
            "events": 3,
            "applied": 3,
            "rejected": 1,
            "late": 0,
            "duplicates": 0,
            "anonymous": 1,
            "users": 2,
            "reasons": {"invalid_field": 1},
            "warnings": [],
            "first_rejections": [found["first_rejections"][0]],
        }
        assert found["first_rejections"][0]["place"] == "orders.csv:5"
        joined = command(deployment, "replay", *options, "--order-lines")
        assert (joined["events"], joined["users"]) == (2, 2)
        assert joined["digest"] != digest
        refused = command(deployment, "replay", *options, "--anonymous", "reject")
        assert (refused["anonymous"], refused["rejected"]) == (0, 2)
        said = command(deployment, "replay", "orders.csv", "--columns", "amount", code=1)["said"]
        assert "NAME=COLUMN" in said


def test_a_log_that_is_rejected_says_where_and_why(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=2)
    (tmp_path / "orders.csv").write_text(CSV)
    with Deployment(settings, tmp_path) as deployment:
        partly = process(
            deployment, "replay", "orders.csv", "--type", "purchase", "--columns", MAPPED
        )
        said, _ = partly.communicate(timeout=60)
        assert partly.returncode == 0, said
        assert "rejected: 1 invalid_field" in said
        assert "! orders.csv:5: invalid_field: amount" in said

        wholly = process(deployment, "replay", "orders.csv", "--columns", MAPPED)
        said, _ = wholly.communicate(timeout=60)
        assert wholly.returncode == 1
        assert "rejected: 4 missing_field" in said
        assert "! orders.csv:1: missing_field: type: say which with --type" in said
        assert said.splitlines()[-1].startswith(
            "livevalue: nothing was applied and 4 were rejected"
        )
        (tmp_path / "one.csv").write_text("".join(CSV.splitlines(keepends=True)[:2]))
        said = deployment.command("replay", "one.csv", "--columns", MAPPED).stderr
        assert "livevalue: nothing was applied and 1 was rejected" in said

        options = ["orders.csv", "--type", "purchase", "--columns", MAPPED]
        replayed = command(deployment, "replay", *options)
        filled = command(deployment, "backfill", *options)
        assert filled == {**replayed, "store": "main"}
        assert (filled["rejected"], filled["anonymous"]) == (1, 1)


def test_reading_a_log_twice_counts_its_rejections_once(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text(CSV)
    options = FileOptions(parse_columns(MAPPED), "purchase")
    source = Source([str(tmp_path / "orders.csv")], Settings(), options)
    for _ in range(2):
        assert sum(batch.size for _, batch in source.batches()) == 3
    said = source.rejections()
    assert (said["rejected"], said["anonymous"], said["reasons"]) == (1, 1, {"invalid_field": 1})
    assert next(lines(said)) == "rejected: 1 invalid_field"
