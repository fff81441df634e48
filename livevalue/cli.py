"""`livevalue`: parses, then calls one function. Each file in commands/ holds one group.

Exit codes: 0 done, 1 refused or failed with one line that says what to do, 2 wrong usage.
What a group's file promises: `register(app)` adds its commands, `ORDER` places them in the help.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import sys
from typing import Annotated

import typer
from pydantic import ValidationError

from livevalue import __version__, commands
from livevalue.output import Refused

app = typer.Typer(
    name="livevalue",
    help=(
        "Keeps the worth of every user current while events arrive.\n\n"
        "Try it:  livevalue demo\n\n"
        "Without a Kafka and a Redis of your own:  livevalue up   (then, in a second terminal)\n\n"
        "    livevalue run\n\n"
        "    livevalue send purchase --user ada --amount 49.90\n\n"
        "    livevalue get ada"
    ),
    epilog="Settings: LIVEVALUE_… in the environment, or livevalue.toml; see `livevalue settings`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and end.")
    ] = False,
) -> None:
    pass


def _register(asked: str) -> None:
    """Add the groups; if it is known which one holds the command asked for, only that one."""
    home = commands.HOME.get(asked)
    names = [home] if home else [module.name for module in pkgutil.iter_modules(commands.__path__)]
    found = [importlib.import_module(f"{commands.__name__}.{name}") for name in names]
    for group in sorted(found, key=lambda group: (getattr(group, "ORDER", 50), group.__name__)):
        group.register(app)


def main() -> None:
    """Entry point: what we know of goes to standard error as one line, exit code 1."""
    # Clients log what they retry; the errors that count are raised and said once.
    for name in ("kafka", "aiokafka", "asyncio"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = bool(os.environ.get("LIVEVALUE_DEBUG"))
    try:
        _register(sys.argv[1] if len(sys.argv) > 1 else "")
        app(prog_name="livevalue")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        said = _known(error)
        if said is None or os.environ.get("LIVEVALUE_DEBUG"):
            raise
        print(f"livevalue: {said}", file=sys.stderr)
        sys.exit(1)


def _known(error: Exception) -> str | None:
    """What to say of an error that one of the packages raises on purpose; None for a bug."""
    if isinstance(error, ValidationError):
        from streams.settings_sources import wrong_setting  # here: --help needs no settings

        return wrong_setting(error)
    # By name first, so that a command which needs no scoring does not load it to fail.
    roots = {"StackError", "FeatureStoreError", "ScoringError", "StreamsError"}
    ours = isinstance(error, Refused) or any(
        kind.__name__ in roots
        and kind.__module__.partition(".")[0] in ("livevalue", "featurestore", "scoring", "streams")
        for kind in type(error).__mro__
    )
    return str(error) if ours else None


if __name__ == "__main__":
    main()
