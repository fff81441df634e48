"""`livevalue tune`, on a file as people have them."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

pytest.importorskip("torch", reason="torch is in the extra `train`")
pytest.importorskip("optuna", reason="optuna is in the extra `train`")

from livevalue import cli
from livevalue.commands.tune import _AUGMENTED, _SEARCHED, _interrupted
from scoring.retraining.space import SPACE
from streams.settings import Settings
from tests.livevalue.test_evaluate import SHOP, write_shoppers

Run = Callable[..., int]
ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "LIVEVALUE_TRAINING__EPOCHS": "2",
    "LIVEVALUE_TRAINING__WIDTH": "2",
    "LIVEVALUE_TRAINING__LEAST_ORDERS": "20",
    "LIVEVALUE_MODEL__HORIZONS_DAYS": "[7]",
    "LIVEVALUE_MODEL__HEADLINE": "d7",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "100",
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "livevalue.cli", "tune", "shop.csv", *SHOP, *arguments]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command in this process, which has torch already; its exit code."""
    write_shoppers(tmp_path / "shop.csv")
    monkeypatch.chdir(tmp_path)
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["livevalue", *command(*arguments)[3:]])
        monkeypatch.setattr(cli, "app", typer.Typer())
        cli.app.callback()(lambda: None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return run


def test_what_tune_finds_can_be_pasted_into_the_settings(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--trials", "2", "--until", "1970-05-20", "--json", "-") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [one["number"] for one in found["trials"]] == [0, 1]
    default, best = found["default"], found["best"]
    assert default["number"] == 0
    assert (default["settings"]["width"], default["settings"]["epochs"]) == (2, 2)
    assert best["ngini"] >= default["ngini"]
    assert found["gain"]["delta"] == pytest.approx(best["ngini"] - default["ngini"], abs=1e-6)
    assert found["rejected"] == 0
    assert (tmp_path / "livevalue-tune.journal").is_file()
    assert "2 trials, 0 pruned; 7 days from " in said.err
    assert "trial 0 is the settings in force; augment is event_dropout / " in said.err
    # Everything that is searched is shown, and a terminal of 80 columns need not fold it.
    assert [*_SEARCHED, *_AUGMENTED] == [dimension.name for dimension in SPACE]
    lines = said.err.splitlines()
    (at,) = [n for n, line in enumerate(lines) if line.startswith("trial  ")]
    assert lines[at].split()[2:-1] == [heading for heading, _ in _SEARCHED.values()] + ["augment"]
    assert all(len(line) <= 80 for line in lines[at : at + 3])
    assert "  0/0/0  " in "".join(lines[at + 1 : at + 3])
    for name in QUICK:
        monkeypatch.delenv(name)
    (tmp_path / "livevalue.toml").write_text(found["toml"] + "\n")
    pasted = Settings().training.model_dump()
    changed = tomllib.loads(found["toml"]).get("training", {})
    assert {name: pasted[name] for name in changed} == {
        name: best["settings"][name] for name in changed
    }


def test_an_interrupted_search_leaves_a_journal_to_go_on_from(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "j"
    with subprocess.Popen(
        command("--trials", "500", "--journal", "j"),
        cwd=tmp_path,
        env=QUICK,
        stdout=subprocess.PIPE,
        text=True,
        # whoever starts the tests in the background may have SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        until = time.monotonic() + 60
        # op 6 with state 1 ends a trial
        while not (journal.is_file() and b'"state":1' in journal.read_bytes()):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "goes on from j" in said
    assert run("--trials", "1", "--journal", "j") == 0
    assert " pruned; " in capsys.readouterr().out


def test_the_same_command_goes_on_though_the_log_has_grown(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--trials", "1") == 0
    assert "kept in livevalue-tune.journal: the log before 1970-" in capsys.readouterr().out
    with (tmp_path / "shop.csv").open("a") as file:
        file.writelines(f"u{i},1971-01-01T00:00:00+00:00,9.5\n" for i in range(50))
    assert run("--trials", "2", "--json", "-") == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["trials"]) == 2
    assert "as kept in livevalue-tune.journal: the log before 1970-" in said.err
    # a log that shows nothing before that is another
    (tmp_path / "shop.csv").write_text("customer,when,total\nada,1971-01-01T00:00:00Z,1\n")
    assert run("--trials", "2") == 1
    assert "of another log: name another --journal" in capsys.readouterr().err


def test_a_journal_that_cannot_be_had_is_told_before_the_log_is_read(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_log = ("--until", "1970-01-01")  # refused as soon as the log is looked at
    assert run(*no_log, "--journal", "nowhere/j") == 1
    assert "cannot write the journal" in capsys.readouterr().err
    with (tmp_path / "j").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(*no_log, "--journal", "j") == 1
        assert "another tune writes the journal j" in capsys.readouterr().err
    assert run(*no_log, "--journal", "j") == 1
    assert "check --until" in capsys.readouterr().err


def test_nothing_is_gained_over_settings_that_do_not_train(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--trials", "1", "--until", "1970-05-20", "--journal", "well") == 0
    assert "1 trial, 0 pruned; 7 days from " in capsys.readouterr().out
    monkeypatch.setenv("LIVEVALUE_TRAINING__RATE", "1e6")
    assert run("--trials", "1") == 1
    said = capsys.readouterr().err
    assert "correct training.rate" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--until", "1970-01-01"), 1, "check --until"),
        (("--until", "1970-01-26"), 1, "cut-off"),
        (("--until", "soon"), 2, "no date or time"),
    ],
)
def test_what_cannot_be_tuned_is_one_line_that_says_what_to_do(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    assert run(*arguments) == code
    assert message in capsys.readouterr().err


def test_settings_that_the_family_does_not_take_are_told_before_the_log_is_read(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_log = ("--until", "1970-01-01")  # refused as soon as the log is looked at
    monkeypatch.setenv("LIVEVALUE_TRAINING__TEACHERS", '["gbm"]')
    monkeypatch.setenv("LIVEVALUE_TRAINING__FAMILY", "gru")
    assert run(*no_log) == 1
    assert "training.teachers (mingru, blend)" in capsys.readouterr().err
    for name in ("TEACHERS", "EPOCHS", "WIDTH", "LEAST_ORDERS"):
        monkeypatch.delenv(f"LIVEVALUE_TRAINING__{name}")
    monkeypatch.setenv("LIVEVALUE_TRAINING__FAMILY", "gbm")
    assert run(*no_log) == 1
    assert "'gbm' is no net that is trained here" in capsys.readouterr().err


def test_what_retrain_refuses_is_not_tuned(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, *rows = (tmp_path / "shop.csv").read_text().splitlines()

    def refused(lines: list[str], columns: str = head) -> str:
        (tmp_path / "shop.csv").write_text("\n".join([columns, *lines]) + "\n")
        assert run("--trials", "1") == 1
        (line,) = [one for one in capsys.readouterr().err.splitlines() if "livevalue: " in one]
        return line

    monkeypatch.setenv("LIVEVALUE_MODEL__HORIZONS_DAYS", "[7, 300]")
    assert "users with a mature label, there are 0 for 300 days: give a longer" in refused(rows)
    monkeypatch.setenv("LIVEVALUE_MODEL__HORIZONS_DAYS", "[7]")
    every = [f"{row},{'USD' if n % 3 else 'EUR'}" for n, row in enumerate(rows)]
    assert "the log mixes currencies" in refused(every, f"{head},currency")
    assert "check SRC" in refused([])
    flat = [f"{row.rpartition(',')[0]},10.00" for row in rows if ",-" not in row]
    assert "LIVEVALUE_RETRAIN__FLAT_PRICES=true" in refused(flat)
    monkeypatch.setenv("LIVEVALUE_RETRAIN__FLAT_PRICES", "true")
    assert run("--trials", "1") == 0


def test_without_the_extra_the_missing_package_is_named(tmp_path: Path) -> None:
    write_shoppers(tmp_path / "shop.csv")
    for missing in ("optuna", "torch"):
        hidden = (
            f"import sys; sys.modules[{missing!r}] = None\n"
            "sys.argv = ['livevalue', 'tune', 'shop.csv']\n"
            "from livevalue.cli import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", hidden],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=QUICK,
        )
        assert done.returncode == 1
        assert f"tune needs {missing}" in done.stderr
        assert "Traceback" not in done.stderr


def test_an_interrupt_is_known_behind_what_it_made_fail() -> None:
    def stumble() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise UnboundLocalError("not set yet")

    with pytest.raises(UnboundLocalError) as raised:
        stumble()
    assert _interrupted(raised.value) and _interrupted(KeyboardInterrupt())
    assert not _interrupted(ValueError("a bug"))
