"""What commands print where nobody watches: whole lines, and progress only of what takes long."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from livevalue.bars import bar, stages
from livevalue.output import Output, Refused


def test_a_piped_table_is_as_wide_as_its_content(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    digest = "0123456789abcdef" * 20
    Output().table(("users", "digest", "of"), [(3, digest, "kafka"), (4, "x", "a file")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=2) for line in lines] == [
        ["users", "digest", "of" + " " * 4],
        ["3", digest, "kafka "],
        ["4", "x", "a file"],
    ]


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    for there in (tmp_path, tmp_path / "nowhere" / "result.json"):
        with pytest.raises(Refused, match=r"cannot write .*: name another file"):
            Output(there)
    fresh, kept, pipe = tmp_path / "fresh", tmp_path / "kept", tmp_path / "pipe"
    kept.write_text("before")
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(fresh)
    for there in (fresh, link, kept, pipe, Path("-")):
        Output(there)
    assert not fresh.exists()
    assert link.is_symlink()
    assert kept.read_text() == "before"


def _clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_plain_progress_begins_five_seconds_after_the_first_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = _clock(monkeypatch)
    with bar(Output(), "users compared") as tell:
        now[0] += 60  # loading what is compared
        tell(1, None)
        now[0] += 4.9
        tell(400, None)
        assert capsys.readouterr().out == ""
        now[0] += 0.1
        tell(501, None)
        tell(502, None)
        assert capsys.readouterr().out == "users compared: 501, 100/s\n"
        now[0] += 5
        tell(1001, 2000)
    assert capsys.readouterr().out == "users compared: 1,001 of 2,000, 100/s\n"


def test_each_stage_and_each_count_begins_anew(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = _clock(monkeypatch)
    with stages(Output()) as tell:
        tell("reading", 0, None)
        now[0] += 6
        tell("reading", 60, None)
        tell("training", 1, 9)
    assert capsys.readouterr().out == "reading: 60, 10/s\n"
    with Output().counting("sending log.csv") as told:
        now[0] += 60
        told(10)
        assert capsys.readouterr().err == ""
        now[0] += 5
        told(60)
    assert capsys.readouterr().err == "sending log.csv: 60, 10/s\n"
