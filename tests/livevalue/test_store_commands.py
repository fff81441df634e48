"""`backfill` and `stores` as a person runs them."""

from __future__ import annotations

from pathlib import Path

from livevalue.embedded import Stack
from tests.e2e.deployment import Deployment, some_events
from tests.parity.onstack import command, process, serve, shaped
from tests.parity.playing import generation


def test_a_store_is_built_first_served_flipped_and_dropped(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=3)
    with Deployment(settings, tmp_path) as deployment:
        serve(settings, generation())
        for source, event in some_events(900, 40):
            deployment.send(source, event)
        deployment.flush()
        # Into the store of a first start, by two processes; then a worker takes it on.
        begun = command(deployment, "backfill", "kafka", "--jobs", "2")
        assert (begun["store"], begun["events"], begun["users"]) == ("main", 900, 40)
        assert command(deployment, "backfill", "kafka")["events"] == 0
        assert not deployment.redis.keys("lv:{*}:v:*")
        worker = deployment.start()
        deployment.settle()
        assert len(deployment.redis.keys("lv:{*}:v:*")) == 40
        assert command(deployment, "digest")["digest"] == begun["digest"]
        assert command(deployment, "verify")["different"] == 0

        said = command(deployment, "backfill", "kafka", "--store", "main", code=1)["said"]
        assert "serves readers" in said
        aside = command(deployment, "backfill", "kafka", "--store", "aside")
        assert aside["digest"] == begun["digest"]
        names = {s["name"]: s["active"] for s in command(deployment, "stores", "ls")["stores"]}
        assert names == {"main": True, "aside": False}
        assert command(deployment, "stores", "flip", "aside")["active"] == "aside"
        deployment.settle()
        assert command(deployment, "stores", "ls")["active"] == "aside"
        assert command(deployment, "digest")["digest"] == begun["digest"]
        assert command(deployment, "verify")["different"] == 0
        assert "serves readers" in command(deployment, "stores", "drop", "aside", code=1)["said"]
        assert command(deployment, "stores", "drop", "main")["keys"] > 40
        assert command(deployment, "stores", "ls")["active"] == "aside"
        assert worker.stop() == 0

        # Whoever starts next finds the store that serves.
        worker = deployment.start("w1")
        for source, event in some_events(100, 40, seed=4, first=900):
            deployment.send(source, event)
        deployment.flush()
        deployment.settle()
        assert command(deployment, "digest")["applied"] == 1000
        assert worker.stop() == 0


def test_stores_that_cannot_be_are_refused(stack: Stack, topic_prefix: str, tmp_path: Path) -> None:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=3)
    with Deployment(settings, tmp_path) as deployment:
        said = command(deployment, "backfill", "kafka", "--store", "Bad_Name", code=1)["said"]
        assert "'Bad_Name' is no name of a store" in said
        for name in ("nope", "Bad_Name", ""):
            said = command(deployment, "stores", "drop", name, code=1)["said"]
            assert f"there is no store {name!r}" in said
        # A drop that was cut short can be run to its end, though the store is listed no more.
        deployment.redis.set("lv:g-left:{1}:s:u1", b"x")
        said = deployment.command("stores", "drop", "g-left").stdout
        assert said == "1 key of store g-left deleted\n"
        assert not deployment.redis.keys("lv:g-left:*")
        # A flip that has come as far as one partition, or has only been asked for.
        for word in ("active", "next"):
            deployment.redis.set("lv:g-half:{0}:s:u1", b"x")
            deployment.redis.set(f"lv:{{2}}:{word}", "g-half")
            said = command(deployment, "stores", "drop", "g-half", code=1)["said"]
            assert "serves readers of partition 2, or is about to" in said
            assert deployment.redis.get("lv:g-half:{0}:s:u1") == b"x"
            deployment.redis.delete(f"lv:{{2}}:{word}")


def test_backfill_sends_whoever_has_an_archive_to_rebuild(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=3)
    with Deployment(settings, tmp_path) as deployment:
        for source, event in some_events(30, 3):
            deployment.send(source, event)
        deployment.flush()
        assert command(deployment, "archive", "kept")["events"] == 30
        said = command(deployment, "backfill", "kept", code=1)["said"]
        assert "`livevalue recover rebuild --archive FOLDER`" in said


def test_a_time_that_is_none_is_wrong_usage(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=3)
    with Deployment(settings, tmp_path) as deployment:
        job = process(deployment, "backfill", "kafka", "--until", "soon")
        said, _ = job.communicate(timeout=60)
        assert job.returncode == 2
        assert "2011-09-10" in said
