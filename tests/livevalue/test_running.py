"""Settings of a stack that runs beside us."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from livevalue import running
from livevalue.settings_list import listed
from streams.errors import WrongSetting
from streams.settings import Settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without livevalue.toml, and no settings in the environment."""
    for name in os.environ:
        if name.startswith("LIVEVALUE_") and name != "LIVEVALUE_CACHE":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".livevalue").mkdir()
    return tmp_path


def _announce(folder: Path) -> None:
    running.announce(
        folder,
        kafka="127.0.0.1:1111",
        redis="redis://127.0.0.1:2222/0",
        settings={"kafka": {"partitions": 3}, "worker": {"clock": "log"}},
    )


def test_a_running_stack_is_found_with_its_deployments_settings(elsewhere: Path) -> None:
    _announce(elsewhere / ".livevalue")
    found, origins = running.read()
    assert found.kafka.bootstrap == "127.0.0.1:1111"
    assert found.store.url.get_secret_value() == "redis://127.0.0.1:2222/0"
    assert found.kafka.partitions == 3
    assert found.worker.clock == "log"
    assert origins["LIVEVALUE_KAFKA__BOOTSTRAP"] == "the stack in .livevalue"


def test_a_stack_whose_process_is_gone_is_not_believed(elsewhere: Path) -> None:
    _announce(elsewhere / ".livevalue")
    path = elsewhere / ".livevalue" / running.FILE
    gone = subprocess.Popen(["true"])
    gone.wait()
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": gone.pid}))
    assert running.settings().kafka.bootstrap == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kafka": "x"}', '{"pid": "x"}'])
def test_a_spoilt_file_is_no_stack(elsewhere: Path, text: str) -> None:
    (elsewhere / ".livevalue" / running.FILE).write_text(text)
    assert running.settings().kafka.bootstrap == ""


def test_the_environment_wins_and_then_no_stack_is_mixed_in(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _announce(elsewhere / ".livevalue")
    monkeypatch.setenv("LIVEVALUE_KAFKA__BOOTSTRAP", "broker:9092")
    found, origins = running.read()
    assert found.kafka.bootstrap == "broker:9092"
    assert found.kafka.partitions == 8
    assert "2222" not in found.store.url.get_secret_value()
    assert origins["LIVEVALUE_KAFKA__BOOTSTRAP"] == "environment"


def test_what_the_environment_says_beside_the_broker_wins_over_the_stack(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _announce(elsewhere / ".livevalue")
    monkeypatch.setenv("LIVEVALUE_KAFKA__PARTITIONS", "5")
    (elsewhere / "livevalue.toml").write_text('[worker]\nclock = "wall"\n')
    found, origins = running.read()
    assert (found.kafka.bootstrap, found.kafka.partitions) == ("127.0.0.1:1111", 5)
    assert found.worker.clock == "wall"
    assert origins["LIVEVALUE_WORKER__CLOCK"] == "livevalue.toml"


def test_another_folder_is_named_by_the_environment(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "trial").mkdir()
    _announce(elsewhere / "trial")
    assert running.settings().kafka.bootstrap == ""
    monkeypatch.setenv("LIVEVALUE_DIR", str(elsewhere / "trial"))
    assert running.settings().kafka.bootstrap == "127.0.0.1:1111"


def test_withdrawn_it_is_gone(elsewhere: Path) -> None:
    _announce(elsewhere / ".livevalue")
    running.withdraw(elsewhere / ".livevalue")
    running.withdraw(elsewhere / ".livevalue")
    assert running.find() == {}


def test_no_secret_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEVALUE_KAFKA__PASSWORD", "hunter2")
    monkeypatch.setenv("LIVEVALUE_STORE__URL", "redis://app:hunter2@cache:6379/0")
    monkeypatch.setenv("LIVEVALUE_MODEL__REGISTRY", "s3://key:hunter2@bucket/x")
    rows = {row.name: row for row in listed()}
    assert "hunter2" not in "".join(f"{row}" for row in rows.values())
    assert rows["LIVEVALUE_STORE__URL"].value == "redis://app:***@cache:6379/0"
    assert rows["LIVEVALUE_MODEL__REGISTRY"].value == "s3://***@bucket/x"
    assert rows["LIVEVALUE_STORE__URL"].origin == "environment"
    assert rows["LIVEVALUE_KAFKA__PARTITIONS"].origin == "default"


def test_a_section_that_does_not_exist_is_refused_with_the_nearest(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIVEVALUE_WORKR__BATCH", "7")
    for read in (running.settings, Settings):
        with pytest.raises(WrongSetting, match="is LIVEVALUE_WORKER__BATCH meant"):
            read()
    monkeypatch.delenv("LIVEVALUE_WORKR__BATCH")
    (elsewhere / "livevalue.toml").write_text("[workr]\nbatch = 7\n")
    with pytest.raises(WrongSetting, match=r"livevalue\.toml: workr .* \[worker\] meant"):
        running.settings()


def test_names_without_two_underscores_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIVEVALUE_DEBUG", "LIVEVALUE_DATA", "LIVEVALUE_ANYTHING"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("OTHER_KAFAK__PARTITIONS", "7")
    assert running.settings().kafka.partitions == 8


def test_a_section_given_as_a_plain_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEVALUE_KAFKA", "3")
    with pytest.raises(WrongSetting, match="LIVEVALUE_KAFKA is a section"):
        running.settings()
    monkeypatch.setenv("LIVEVALUE_KAFKA", '{"partitions": 3}')
    assert running.settings().kafka.partitions == 3


def test_a_value_that_is_no_json_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEVALUE_KAFKA", "hunter2")
    with pytest.raises(WrongSetting, match="LIVEVALUE_KAFKA: not JSON") as caught:
        running.settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("LIVEVALUE_MODEL__HEADLINE", "d8", ("model", "headline")),
        ("LIVEVALUE_MODEL__HORIZONS_DAYS", "[7, 30]", ("model", "headline")),
        ("LIVEVALUE_MODEL__HORIZONS_DAYS", "[90, 7]", ("model", "horizons_days")),
        ("LIVEVALUE_MODEL__HORIZONS_DAYS", "[]", ("model", "horizons_days")),
        ("LIVEVALUE_MODEL__SILENCE_DAYS", "[1, 7]", ("model", "silence_days")),
        ("LIVEVALUE_MODEL__SILENCE_DAYS", "[0, 7, 7]", ("model", "silence_days")),
        ("LIVEVALUE_KAFKA__HEARTBEAT_S", "10", ("kafka", "heartbeat_s")),
        ("LIVEVALUE_KAFKA__SESSION_TIMEOUT_S", "2", ("kafka", "heartbeat_s")),
    ],
)
def test_settings_that_no_worker_can_run_with_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, place: tuple[str, str]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        running.settings()
    assert [error["loc"] for error in caught.value.errors()] == [place]
