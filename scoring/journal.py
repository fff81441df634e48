"""The journal of a search: one file that a stopped search goes on from.

Optuna's journal storage appends what happens, one JSON a line, so a process may die at any time.
What a search was made with is kept in it; a journal of another log, other settings or another
search space is refused, since its trials answer another question. One process at a time.
"""

from __future__ import annotations

import fcntl
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from scoring.errors import ScoringError

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState
except ImportError as error:
    raise ScoringError(
        f"tune needs {error.name}: install the package with its extra `train`"
    ) from error

NAME = "livevalue-tune"
_MADE_WITH = "made_with"
_SAID = {"log": "of another log", "settings": "with other settings", "space": "in another space"}


@contextmanager
def opened(path: Path, made_with: Mapping[str, str]) -> Iterator[optuna.Study]:
    """The study in a journal, begun or gone on with; what was interrupted in it is given up.

    `made_with`: hashes of `log`, `settings` and `space`.
    """
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
        study = _loaded(path)
        kept = study.user_attrs.get(_MADE_WITH)
        if kept is None and not study.trials:
            study.set_user_attr(_MADE_WITH, dict(made_with))
        elif kept != made_with:
            differs = [
                said for part, said in _SAID.items() if (kept or {}).get(part) != made_with[part]
            ]
            raise ScoringError(
                f"the journal {path} holds a search {' and '.join(differs)}: name another"
                " --journal, or delete it to begin anew"
            )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        yield study


def _mend(path: Path) -> None:
    """Refuse what is no journal; take away a last line that a dying process left half written."""
    raw = path.read_bytes()
    if not raw:
        return
    first = raw.partition(b"\n")[0]
    try:
        ours = "op_code" in json.loads(first)
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


def _loaded(path: Path) -> optuna.Study:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(
            storage=storage, study_name=NAME, direction="maximize", load_if_exists=True
        )
    # whatever it is that damaged lines make Optuna raise
    except Exception as error:
        raise ScoringError(
            f"the journal {path} cannot be read ({type(error).__name__}: {error}): name another"
            " --journal, or delete it to begin anew"
        ) from error
