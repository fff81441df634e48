"""`livevalue init`: what it writes loads, parses and names only what exists."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.main import get_command

from featurestore import times
from livevalue import __version__, commands, running
from livevalue.jobs.starting import start
from livevalue.output import Refused
from livevalue.sources import FileOptions
from streams.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
NOW_MS = times.parse("2026-03-01T12:00:00Z")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    start(folder, "EUR", NOW_MS)
    return folder


@pytest.fixture(scope="module")
def program() -> Any:
    app = typer.Typer()
    for module in pkgutil.iter_modules(commands.__path__):
        importlib.import_module(f"{commands.__name__}.{module.name}").register(app)
    return get_command(app)


def _check(program: Any, words: list[str]) -> None:
    """A command exists, and so do its options."""
    command, rest = program, list(words)
    while rest and (group := getattr(command, "commands", None)) and rest[0][0] != "-":
        assert rest[0] in group, f"no command {rest[0]}"
        command = group[rest.pop(0)]
    known = {option for param in command.params for option in param.opts} | {"--help"}
    assert {word.split("=")[0] for word in rest if word.startswith("-")} <= known, words


def _compose(folder: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((folder / "docker-compose.yml").read_text())
    return parsed


def test_a_project_has_all_its_files(tmp_path: Path) -> None:
    facts = start(tmp_path / "shop", "EUR", NOW_MS)
    assert set(facts["files"]) == {
        "pyproject.toml",
        ".gitignore",
        ".dockerignore",
        "livevalue.toml",
        "docker-compose.yml",
        "Dockerfile",
        "README.md",
        "events.jsonl",
    }
    assert {path.name for path in (tmp_path / "shop").iterdir()} == set(facts["files"])


def test_its_settings_load_and_change_only_what_they_say(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = Settings()
    monkeypatch.chdir(shop)
    found, origins = running.read()
    assert found.kafka.app == "shop"
    assert found.value.currency == "EUR"
    assert origins["LIVEVALUE_VALUE__CURRENCY"] == "livevalue.toml"
    assert found.kafka.bootstrap == "", "so that the stack of `livevalue up` is found"
    kept = found.model_dump(exclude={"kafka": {"app"}, "value": {"currency"}})
    assert kept == defaults.model_dump(exclude={"kafka": {"app"}, "value": {"currency"}})


def test_what_its_settings_have_commented_out_loads_too(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shop / "livevalue.toml"
    # Of a comment only what is a line of TOML: `# name = ...` or `# [[table]]`.
    opened = re.sub(r"^# (?=\w+ = |\[\[)", "", file.read_text(), flags=re.MULTILINE)
    assert opened != file.read_text()
    file.write_text(opened)
    monkeypatch.chdir(shop)
    found = Settings()
    assert found.kafka.bootstrap == "kafka-1:9092,kafka-2:9092"
    assert [rule.type for rule in found.value.rules] == ["purchase", "interaction"]
    assert found.value.rates[0].currency == "USD"


def test_it_depends_on_this_livevalue(shop: Path) -> None:
    project = tomllib.loads((shop / "pyproject.toml").read_text())["project"]
    assert project["name"] == "shop"
    assert project["dependencies"] == [f"livevalue>={__version__},<0.2"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (train,) = project["optional-dependencies"]["train"]
    extras = train.removeprefix("livevalue[").rstrip("]").split(",")
    assert set(extras) <= set(ours["optional-dependencies"])


def test_compose_and_readme_name_existing_commands_only(shop: Path, program: Any) -> None:
    ours = [s for s in _compose(shop)["services"].values() if s["image"].startswith("shop-")]
    assert len(ours) == 5
    page = (shop / "README.md").read_text() + (shop / "livevalue.toml").read_text()
    typed = re.findall(r"^\$ livevalue (.+)$|`livevalue ([^`]+)`", page, re.MULTILINE)
    assert len(typed) > 8
    for words in [*(s["command"] for s in ours), *(a or b for a, b in typed)]:
        _check(program, shlex.split(words, comments=True) if isinstance(words, str) else words)


def test_compose_sets_only_settings_that_exist_and_names_no_path_outside(shop: Path) -> None:
    services = _compose(shop)["services"]
    page = (ROOT / "docs/settings.md").read_text()
    named = {name for service in services.values() for name in service.get("environment", {})}
    assert all(f"`{name}`" in page for name in named if name.startswith("LIVEVALUE_"))
    mounts = [volume for service in services.values() for volume in service.get("volumes", [])]
    hosts = {mount.split(":")[0] for mount in mounts}
    assert hosts == {"./livevalue.toml", *_compose(shop)["volumes"]}
    assert {s["build"]["context"] for s in services.values() if "build" in s} == {"."}
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_and_images_keep_step_with_our_own(shop: Path) -> None:
    theirs, ours = _compose(shop)["services"], _compose(ROOT)["services"]
    assert theirs.keys() == ours.keys()
    assert (theirs["kafka"], theirs["redis"]) == (ours["kafka"], ours["redis"])
    for name, service in ours.items():
        for what in ("command", "environment", "depends_on", "healthcheck", "restart"):
            assert theirs[name].get(what) == service.get(what), (name, what)
    stages = re.findall(r"^FROM .*$", (shop / "Dockerfile").read_text(), re.MULTILINE)
    assert stages == re.findall(r"^FROM .*$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert "ENV PATH=/opt/livevalue/bin:$PATH " in (shop / "Dockerfile").read_text()


def test_its_compose_file_is_valid(shop: Path, compose: list[str]) -> None:
    done = subprocess.run([*compose, "config", "-q"], cwd=shop, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_its_sample_events_are_read_whole_and_lie_in_the_last_weeks(shop: Path) -> None:
    log = FileOptions().open([shop / "events.jsonl"], Settings())
    assert len(list(log.records())) == 9
    assert log.rejections == []
    sent = [json.loads(line) for line in (shop / "events.jsonl").read_text().splitlines()]
    ages = [NOW_MS - times.parse(event["event_time"]) for event in sent]
    assert ages == sorted(ages, reverse=True)
    assert 0 < ages[-1] < ages[0] < 60 * times.DAY_MS
    assert {event["type"] for event in sent} == {"browse", "purchase", "interaction"}


def test_links_of_its_readme_lead_somewhere(shop: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (shop / "README.md").read_text())
    assert links
    assert all((shop / link).is_file() for link in links)


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(Refused, match="is not empty"):
        start(folder, "EUR", NOW_MS)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    with pytest.raises(Refused, match="cannot write"):
        start(folder / "mine.txt" / "shop", "EUR", NOW_MS)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    assert start(tmp_path / "shop", "EUR", NOW_MS)["name"] == "shop"


@pytest.mark.parametrize("name", ["Shop", "my shop", "-shop", "a--b", "1st", "livevalue", "x" * 61])
def test_a_name_that_could_not_be_installed_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused):
        start(tmp_path / name, "EUR", NOW_MS)
    assert list(tmp_path.iterdir()) == []


def test_every_template_is_in_the_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "templates/*" in data["package-data"]["livevalue"]
    templates = [path.name for path in (ROOT / "livevalue/templates").iterdir()]
    assert len(templates) == 8
    # A leading dot would be left out of some globs, and ruled out by our own .gitignore.
    assert all(name.endswith(".template") and name[0] != "." for name in templates)


def test_the_command_makes_a_project_and_says_what_is_next(tmp_path: Path) -> None:
    kept = {n: v for n, v in os.environ.items() if not n.startswith("LIVEVALUE_")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "livevalue.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={**kept, "PYTHONPATH": str(ROOT)},
        )

    done = run("init", "shop", "--currency", "EUR", "--json", "made.json")
    assert done.returncode == 0, done.stderr
    assert "cd shop && livevalue up" in done.stdout
    facts = json.loads((tmp_path / "made.json").read_text())
    assert facts["folder"] == "shop"
    assert all((tmp_path / "shop" / file).is_file() for file in facts["files"])
    again = run("init", "shop")
    assert again.returncode == 1
    assert again.stderr.startswith("livevalue: shop is not empty")
