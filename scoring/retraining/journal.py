"""The journal of a search: one file that a stopped search goes on from.

Optuna's journal storage appends what happens, one JSON a line, so a process may die at any time.
What a search was made with is kept in it; a journal of another log, other settings or another
search space is refused, since its trials answer another question. So is the moment up to which the
log was looked at: a log that has grown since is the same log. One process at a time.
"""

from __future__ import annotations

import fcntl
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from scoring.errors import ScoringError

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
    from optuna.trial import TrialState
except ImportError as error:
    raise ScoringError(
        f"tune needs {error.name}: install the package with its extra `train`"
    ) from error

NAME = "livevalue-tune"
_MADE_WITH, _VIEW = "made_with", "view"
# Optuna's first line, around the writer's name
_FIRST = (
    b'{"op_code":0,"worker_id":"',
    b'","study_name":"' + NAME.encode() + b'","directions":[2]}',
)
_SAID = {"log": "of another log", "settings": "with other settings", "space": "in another space"}


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal that is open, and locked."""

    path: Path
    study: optuna.Study

    @property
    def view(self) -> dict[str, Any] | None:
        """What was looked at of the log; None where no search was begun."""
        attributes = self.study.user_attrs
        found: dict[str, Any] | None = attributes.get(_VIEW) if _MADE_WITH in attributes else None
        return found

    def hold(self, made_with: Mapping[str, str], view: Mapping[str, Any]) -> None:
        """Begin a search or go on with it; what was interrupted in it is given up.

        `made_with`: hashes of `log`, `settings` and `space`.
        """
        kept = self.study.user_attrs.get(_MADE_WITH)
        if kept is None and not self.study.trials:
            # in this order: a view without the rest is of a search that was never begun
            self.study.set_user_attr(_VIEW, dict(view))
            self.study.set_user_attr(_MADE_WITH, dict(made_with))
        elif kept != made_with:
            differs = [
                said for part, said in _SAID.items() if (kept or {}).get(part) != made_with[part]
            ]
            self.refuse(" and ".join(differs))
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)

    def refuse(self, what: str) -> NoReturn:
        """The error of a journal that holds a search `what`, not the one asked for."""
        raise ScoringError(
            f"the journal {self.path} holds a search {what}: name another --journal, or delete it"
            " to begin anew"
        )


class _OursAlone(JournalFileSymlinkLock):
    """No lock: `opened` holds the one that keeps other processes out.

    Optuna's own is a link beside the journal. Ctrl-C between its making and the block that takes it
    away leaves it there, as does kill -9, and who writes next waits 30 seconds (optuna 5.0).
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    """A journal, made where there is none; before the log is read, which may take long."""
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        file = path.open("a+b")
    except OSError as error:
        raise ScoringError(
            f"cannot write the journal {path} ({error.strerror}): name another --journal"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ScoringError(
                f"another tune writes the journal {path}: wait for it, or name another --journal"
            ) from error
        _mend(path)
        yield Journal(path, _loaded(path))


def _mend(path: Path) -> None:
    """Refuse what is no journal; take away a last line that a dying process left half written."""
    raw = path.read_bytes()
    if not raw:
        return
    first, newline, _ = raw.partition(b"\n")
    try:
        ours = (not newline and _begins(first)) or "op_code" in json.loads(first)
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise ScoringError(
            f"{path} is not a journal of tune: name another --journal, this file is left as it is"
        )
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        with path.open("r+b") as file:
            file.truncate(whole)


def _begins(cut: bytes) -> bool:
    """Is this how a journal's first line begins? Its writer died within it."""
    head, tail = _FIRST
    if len(cut) <= len(head):
        return head.startswith(cut)
    rest = cut[len(head) :]
    return cut.startswith(head) and tail.startswith(
        rest[rest.find(b'"') :] if b'"' in rest else b""
    )


def _loaded(path: Path) -> optuna.Study:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = JournalStorage(JournalFileBackend(str(path), _OursAlone(str(path))))
        return optuna.create_study(
            storage=storage, study_name=NAME, direction="maximize", load_if_exists=True
        )
    # whatever it is that damaged lines make Optuna raise
    except Exception as error:
        raise ScoringError(
            f"the journal {path} cannot be read ({type(error).__name__}: {error}): name another"
            " --journal, or delete it to begin anew"
        ) from error
