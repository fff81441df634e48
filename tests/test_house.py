"""The house itself: one arrow between packages, pages that are true, a deployment that parses."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel
from typer.main import get_command

from livevalue import commands, settings_docs
from streams.settings import Settings
from tests.links import dead_links

ROOT = Path(__file__).resolve().parent.parent

# Spelled apart, so that this file does not find itself.
MACHINE_PATHS = re.compile(
    "|".join(["/wo" + "rk/", "/ho" + "me/[a-z]", "/Us" + "ers/", "/ro" + "ot/"])
)
REGISTRY_HOSTS = re.compile(r"https?://|--index-url|--extra-index-url|--find-links|--trusted-host")


def _tracked() -> list[Path]:
    """Files that git tracks, or all that would be where this is no checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, text=True
    )
    names = listed.stdout.split("\0") if listed.returncode == 0 else []
    if not names:
        pytest.skip("not a git checkout: no list of tracked files")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def _project() -> dict[str, Any]:
    parsed: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return parsed


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_imports_point_one_way() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = _run(str(lint), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 6 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("module", ["streams.app", "livevalue", "livevalue.cli"])
def test_a_worker_and_a_client_load_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'onnx') if m in sys.modules])"
    done = _run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")


def test_serving_a_trained_generation_loads_no_torch() -> None:
    code = """
import sys
import numpy as np
from livevalue.demo.bundled import bundled
model = bundled().model
features = np.zeros((2, 3, len(bundled().manifest.features)), np.float32)
assert model.predict(np.zeros((2, model.carry_size), np.float32), features).expected.shape[0] == 2
print([m for m in ("torch", "onnx") if m in sys.modules], "onnxruntime" in sys.modules)
"""
    done = _run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[] True"


def test_a_client_loads_no_faust() -> None:
    code = "import sys, livevalue; print('faust' in sys.modules)"
    assert _run(sys.executable, "-c", code).stdout.split() == ["False"]


def test_no_package_is_exempted_from_strict_types() -> None:
    mypy = _project()["tool"]["mypy"]
    assert mypy["strict"] is True
    assert "overrides" not in mypy


def test_the_main_dependencies_hold_no_torch() -> None:
    names = {re.split(r"[<>=]", line)[0] for line in _project()["project"]["dependencies"]}
    locked = {
        line.split("==")[0]
        for line in (ROOT / "requirements/base.txt").read_text().splitlines()
        if "==" in line
    }
    assert not {"torch", "onnx"} & (names | locked)
    assert names <= locked, "run make lock"


def test_every_locked_package_has_hashes_and_no_host() -> None:
    for lock in (ROOT / "requirements").glob("*.txt"):
        text = lock.read_text()
        assert not REGISTRY_HOSTS.search(text), lock
        if lock.name != "torch.txt":
            pinned = re.findall(r"^[a-z0-9.-]+==\S+ \\\n    --hash=sha256:", text, re.MULTILINE)
            assert len(pinned) == len(re.findall(r"^[a-z0-9].*==", text, re.MULTILINE)) > 0, lock


def test_every_dependency_has_its_reason_on_the_page() -> None:
    page = (ROOT / "docs/dependencies.md").read_text()
    wanted = {
        line.split()[0]
        for file in (ROOT / "requirements").glob("*.in")
        for line in file.read_text().splitlines()
        if line and line[0] not in "#-"
    }
    missing = {name for name in wanted | {"torch"} if f"| `{name}` |" not in page}
    assert not missing


def test_the_readme_s_commands_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named <= targets
    assert {"install", "demo", "test", "check", "bench", "chaos"} <= targets


def test_every_locked_package_is_audited() -> None:
    asked = ["make", "-n", "audit-deps"]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    runs = [shlex.split(run) for run in re.findall(r"/pip-audit (.+?) 2>&1", said)]
    named = {ROOT / file for run in runs for flag, file in pairwise(run) if flag == "-r"}
    assert named == set((ROOT / "requirements").glob("*.txt"))
    for run in runs:  # --dry-run: the options fit the files, and no service is asked
        dry = [sys.executable, "-m", "pip_audit", *run, "--dry-run"]
        done = subprocess.run(dry, cwd=ROOT, capture_output=True, check=False, text=True)
        assert done.returncode == 0, done.stderr


def test_ci_runs_what_the_readme_says() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    commands = script.read_text().splitlines()
    assert commands.index("make test") < commands.index("make check TESTED=1")


def test_the_version_is_the_same_everywhere() -> None:
    stated = _project()["project"]["version"]
    assert version("livevalue") == stated
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    images = {service["image"] for service in compose["services"].values()}
    assert f"livevalue:{stated}" in images
    assert f"livevalue-train:{stated}" in images


def test_no_tracked_file_names_a_machine_s_path() -> None:
    found = []
    for path in _tracked():
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        lines = data.decode("utf-8", "replace").splitlines()
        found += [
            f"{path.relative_to(ROOT)}: {line}" for line in lines if MACHINE_PATHS.search(line)
        ]
    assert not found


@pytest.mark.parametrize("said", ["was cut at offset ", "holds another record at offset "])
def test_the_page_on_recovery_quotes_what_a_cut_log_halts_with(said: str) -> None:
    assert said in (ROOT / "streams/logid.py").read_text()
    assert f'"{said}N' in (ROOT / "docs/operations.md").read_text()


def test_the_settings_page_is_current() -> None:
    assert settings_docs.main(["--check"]) == 0


def test_every_setting_says_what_it_means() -> None:
    def silent(model: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, info in model.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from silent(kind, f"{prefix}{name}.")
            elif not info.description:
                yield f"{prefix}{name}"

    assert list(silent(Settings, "")) == []


def test_links_between_pages_lead_somewhere() -> None:
    assert dead_links() == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n[b](b.md) [c](b.md#second-part) [d](missing.md) [e](#a)\n")
    (tmp_path / "b.md").write_text(
        "# Second part\n```\n# not a heading\n```\n[f](#not-a-heading)\n"
    )
    assert dead_links(tmp_path) == [
        "a.md: missing.md (no such file)",
        "b.md: #not-a-heading (no such heading)",
    ]


def test_the_compose_file_is_valid(compose: list[str]) -> None:
    done = _run(*compose, "-f", "docker-compose.yml", "config", "-q")
    assert done.returncode == 0, done.stderr


def test_compose_publishes_ports_on_loopback_only() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_sets_only_settings_that_exist() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    names = {name for service in services.values() for name in service.get("environment", {})}
    ours = {name for name in names if name.startswith("LIVEVALUE_")}
    page = (ROOT / "docs/settings.md").read_text()
    assert ours
    assert all(f"`{name}`" in page for name in ours)


def _compose_commands() -> set[tuple[str, ...]]:
    """What the compose file lets our images run."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ours = [s for s in services.values() if s["image"].startswith("livevalue")]
    return {tuple(service["command"]) for service in ours}


def _promised_commands() -> set[tuple[str, ...]]:
    """What the pages tell people to type, as words after `livevalue`."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    lines = re.findall(r"^\$ livevalue (.+)$|`livevalue ([^`]+)`", text, re.MULTILINE)
    return {tuple(shlex.split(first or second, comments=True)) for first, second in lines}


def _commands_in_messages() -> set[tuple[str, ...]]:
    """Commands to which code sends an operator, without their arguments."""
    packages = ["featurestore", "scoring", "streams", "livevalue"]
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    text = "\n".join(file.read_text() for file in files)
    return {tuple(found.split()) for found in re.findall(r"`livevalue ([a-z]+(?: [a-z]+)?)", text)}


@pytest.fixture(scope="module")
def program() -> Any:
    """The command line with all of its groups, as `livevalue --help` loads it."""
    app = typer.Typer()
    for module in pkgutil.iter_modules(commands.__path__):
        importlib.import_module(f"{commands.__name__}.{module.name}").register(app)
    return get_command(app)


@pytest.mark.parametrize("words", sorted(_promised_commands() | _compose_commands()), ids=" ".join)
def test_commands_in_pages_and_compose_exist_with_their_options(
    program: Any, words: tuple[str, ...]
) -> None:
    command, rest = program, list(words)
    # Typer brings a click of its own, hence no class of click's to ask for.
    while rest and (group := getattr(command, "commands", None)) and rest[0][0] != "-":
        assert rest[0] in group, f"no command {rest[0]}"
        command = group[rest.pop(0)]
    known = {option for param in command.params for option in param.opts} | {"--help"}
    asked = {word.split("=")[0] for word in rest if word.startswith("-")}
    assert asked <= known


@pytest.mark.parametrize("words", sorted(_commands_in_messages()), ids=" ".join)
def test_commands_in_messages_exist(program: Any, words: tuple[str, ...]) -> None:
    assert words[0] in program.commands
    group = getattr(program.commands[words[0]], "commands", None)
    assert group is None or words[1:] == () or words[1] in group


def test_the_shipped_data_names_its_source() -> None:
    notice = (ROOT / "NOTICE").read_text()
    assert "Daqing Chen" in notice
    assert "CC BY 4.0" in notice
    assert json.dumps(_project()["project"]["license-files"]) == '["LICENSE", "NOTICE"]'
