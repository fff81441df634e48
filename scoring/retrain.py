"""Retrain: log in, generation out, promoted if it is no worse than the champion.

A plain function that cron, Airflow or Kubernetes can call as often as they like: the same log,
settings and seed give the same bytes, hence the same id, and publishing or promoting them again
changes nothing. Where the log is too short for labels, the `prior` generation is published, and
the report says from which date labels will exist.

The gate: candidate and champion score the same rows, users whom neither was trained on (held out
by a hash of their name, so that the next retrain holds out the same) at the newest cut-offs with
mature labels. The candidate passes if the lower bound of its nGini difference (paired bootstrap
by user) is not below -.005 and its level is not further off by more than .05 in the logarithm.
Against the untrained `prior` the upper bound counts: it stays only where it is clearly better.

Takes an iterable of events, never a topic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from featurestore.features import FEATURES
from featurestore.fold_settings import FoldSettings
from featurestore.settings import FeatureSettings
from featurestore.vector import TOKENS
from scoring import metrics
from scoring.bootstrap import paired_bootstrap
from scoring.carries import carry_rows
from scoring.drift import with_reference
from scoring.errors import RegistryError, ScoringError, TooLittleData
from scoring.examples import DAY_MS, ExampleBuilder, Examples, Log, rolling_cutoffs
from scoring.generation import Generation, prior, with_unit
from scoring.registry import Registry
from scoring.settings import ModelSettings, TrainingSettings
from scoring.splits import held_out
from scoring.trainable import family

Progress = Callable[[str, int, int | None], None]  # stage, done, in all where known
Values = npt.NDArray[np.float64]


class RetrainSettings(BaseModel):
    """How much is learned from, and what a candidate must reach."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cutoffs: int = Field(12, ge=2, description="rolling cut-offs, at most")
    most_users: int = Field(200_000, ge=100, description="beyond, a part of the users is drawn")
    windows: int = Field(3, ge=1, description="newest mature cut-offs that are validated on")
    ngini_low: float = Field(-0.005, description="least lower bound of the nGini difference")
    log_bias: float = Field(0.05, ge=0, description="how much further off the level may be")
    draws: int = Field(400, ge=50, description="of the bootstrap")
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LogSummary:
    """What one reading of a log shows."""

    events: int
    users: int
    start_ms: int  # first event time
    clock_ms: int  # largest log time


@dataclass(frozen=True, slots=True)
class RetrainReport:
    """What a retrain did; `livevalue retrain --json` holds it."""

    generation: str
    metrics: dict[str, Any]
    promoted: bool
    reason: str
    passed: bool = False  # the gate's word, whether or not a promotion was asked for

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def scan(log: Log) -> LogSummary:
    """Count a log and find its ends."""
    users: set[str] = set()
    events, start, clock = 0, np.iinfo(np.int64).max, 0
    for _, batch in log:
        users.update(batch.users)
        events += batch.size
        if batch.size:
            start = min(start, int(batch.events["time_ms"].min()))
            clock = max(clock, int(batch.log_ms.max()))
    return LogSummary(events, len(users), int(start) if events else 0, clock)


async def retrain(
    log: Callable[[], Log],
    model: ModelSettings,
    features: FeatureSettings,
    sources: Sequence[str],
    registry: Registry,
    *,
    settings: RetrainSettings | None = None,
    training: TrainingSettings | None = None,
    unit: str = "",
    promote: bool = True,
    progress: Progress | None = None,
) -> RetrainReport:
    """Train on `log` (called twice: it is read once to see its ends, once to fold it).

    `promote` False publishes only.
    """
    settings = settings or RetrainSettings()
    tell = progress or (lambda stage, done, total: None)
    tell("scan", 0, None)
    summary = scan(log())
    lateness_ms = int(FoldSettings.of(features, sources).lateness_ms.max())
    horizons_s = tuple(days * 86_400 for days in model.horizons_days)
    champion = await registry.champion()
    try:
        examples = fold_log(log(), summary, features, sources, horizons_s, settings, tell)
        made, rows = _train(examples, training, settings, unit, tell)
    except TooLittleData as error:
        return await _fall_back(
            registry, model, champion, summary, lateness_ms, horizons_s, error, promote
        )
    headline = model.horizons_days.index(int(model.headline.removeprefix("d")))
    judged = _windows(rows, headline, settings.windows)
    report = {"validation": _measure(made, judged, horizons_s, headline)}
    passed, reason = True, "there was no champion before"
    if champion == made.id:
        passed, reason = True, "the same generation as the champion: nothing has changed"
    elif champion is not None:
        passed, reason = await _gate(registry, champion, made, judged, headline, settings, report)
    await registry.publish(made)
    if passed and promote:
        await registry.promote(made.id)
    return RetrainReport(made.id, report, passed and promote, reason, passed)


def fold_log(
    log: Log,
    summary: LogSummary,
    features: FeatureSettings,
    sources: Sequence[str],
    horizons_s: Sequence[int],
    settings: RetrainSettings,
    tell: Progress,
) -> Examples:
    """Examples at rolling cut-offs; TooLittleData where no label is mature."""
    lateness_ms = int(FoldSettings.of(features, sources).lateness_ms.max())
    cutoffs = rolling_cutoffs(
        summary.start_ms, summary.clock_ms, horizons_s, lateness_ms, settings.cutoffs
    )
    if not summary.events or not len(cutoffs):
        raise TooLittleData("no cut-off of this log has a mature label")
    share = min(1.0, settings.most_users / max(1, summary.users))
    builder = ExampleBuilder(
        features, sources, horizons_s, cutoffs, log_start_ms=summary.start_ms, share=share
    )
    done = 0
    for partition, batch in log:
        builder.add(partition, batch)
        done += batch.size
        tell("fold", done, summary.events)
    return builder.finish()


def _train(
    examples: Examples,
    training: TrainingSettings | None,
    settings: RetrainSettings,
    unit: str,
    tell: Progress,
) -> tuple[Generation, Examples]:
    """(generation, held-out rows that it was not trained on)."""
    chosen = training or TrainingSettings(seed=settings.seed)
    kind = family(chosen.family)
    held = held_out(examples, chosen)
    known = examples if kind.holds_out else examples.rows(~held)
    days = [seconds // 86_400 for seconds in examples.horizons_s]
    made = kind.make(known, days, chosen, windows=settings.windows, progress=tell)
    made = with_unit(made, unit)
    newest = examples.rows(examples.window == examples.window.max())
    made = with_reference(made, newest, expected(made, newest)[0])
    return made, examples.rows(held & examples.mask.any(axis=1))


def _windows(rows: Examples, headline: int, most: int) -> Examples:
    """Rows of the newest cut-offs whose headline (or else longest mature) label is known."""
    mature = rows.rows(rows.mask[:, _column(rows, headline)])
    return mature.rows(np.isin(mature.window, np.unique(mature.window)[-most:]))


def _column(rows: Examples, headline: int) -> int:
    """The headline's column, or the longest horizon with a mature label."""
    column = headline
    while column > 0 and not rows.mask[:, column].any():
        column -= 1
    return column


def expected(made: Generation, rows: Examples) -> tuple[Values, Values]:
    """(N, H) expected values and P(active) of examples by the served files."""
    got = made.model.predict(carry_rows(made, rows), rows.features[:, None])
    return got.expected[:, 0].astype(np.float64), got.p_active[:, 0].astype(np.float64)


def _measure(
    made: Generation, rows: Examples, horizons_s: Sequence[int], headline: int
) -> dict[str, Any]:
    """Metrics by horizon, mean over the cut-offs in which it is mature."""
    said, p_active = expected(made, rows)
    out: dict[str, Any] = {}
    for h, seconds in enumerate(horizons_s):
        parts = []
        for window in np.unique(rows.window):
            at = np.flatnonzero((rows.window == window) & rows.mask[:, h])
            if len(at):
                value, active = rows.value[at, h], rows.active[at, h]
                parts.append(
                    {
                        "ngini": metrics.ngini(value, said[at, h]),
                        "bias": metrics.bias(value, said[at, h]),
                        "auc": metrics.auc(active, p_active[at, h]),
                        "brier": metrics.brier(active, p_active[at, h]),
                    }
                )
        if parts:
            out[f"d{seconds // 86_400}"] = {
                name: _mean([part[name] for part in parts]) for name in parts[0]
            }
    out["rows"], out["headline"] = len(rows), f"d{horizons_s[headline] // 86_400}"
    return out


def _mean(values: Sequence[float]) -> float | None:
    known = [v for v in values if np.isfinite(v)]
    return round(float(np.mean(known)), 5) if known else None


async def _gate(
    registry: Registry,
    champion: str,
    made: Generation,
    rows: Examples,
    headline: int,
    settings: RetrainSettings,
    report: dict[str, Any],
) -> tuple[bool, str]:
    """Whether the candidate may replace the champion, and why."""
    try:
        old = await registry.get(champion)
    except (RegistryError, ScoringError) as error:
        return True, f"the champion cannot be loaded any more: {error}"
    names = tuple(feature.name for feature in FEATURES)
    if old.manifest.horizons_s != made.manifest.horizons_s:
        return True, "the horizons have changed, so the champion cannot be served any more"
    if (old.manifest.features or names) != names or (old.manifest.tokens or TOKENS) != TOKENS:
        return True, "the feature set has changed, so the champion cannot be served any more"
    column = _column(rows, headline)
    value = rows.value[:, column]
    new_said, old_said = expected(made, rows)[0][:, column], expected(old, rows)[0][:, column]
    found = paired_bootstrap(
        "ngini", value, new_said, old_said, rows.user, rows.window, settings.draws, settings.seed
    )
    bias = {
        name: metrics.bias(value, said) for name, said in (("new", new_said), ("old", old_said))
    }
    off = {name: abs(np.log(max(b, 1e-6))) for name, b in bias.items()}
    report["against_champion"] = {
        "champion": champion,
        "ngini_delta": round(found.delta, 5),
        "ngini_low": round(found.low, 5),
        "ngini_high": round(found.high, 5),
        "bias": round(bias["new"], 5),
        "bias_champion": round(bias["old"], 5),
        "users": len(np.unique(rows.user)),
    }
    ranks = f"nGini {found.delta:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    levels = f"bias {bias['new']:.2f} after {bias['old']:.2f}"
    # What was never trained is not owed the same proof: it stays only if it is clearly better.
    bound = found.high if old.manifest.family == "prior" else found.low
    if not bound >= settings.ngini_low:
        return False, f"refused: it may rank worse than the champion ({ranks}; {levels})"
    if not off["new"] <= off["old"] + settings.log_bias:
        return False, f"refused: its level is further off than the champion's ({levels}; {ranks})"
    return True, f"no worse than the champion ({ranks}; {levels})"


async def _fall_back(
    registry: Registry,
    model: ModelSettings,
    champion: str | None,
    summary: LogSummary,
    lateness_ms: int,
    horizons_s: Sequence[int],
    error: TooLittleData,
    promote: bool,
) -> RetrainReport:
    """Publish the prior; it replaces nothing that was trained."""
    made = prior(model)
    await registry.publish(made)
    promoted = promote and champion is None
    if promoted:
        await registry.promote(made.id)
    reason = f"too little data: {error}"
    if summary.events:
        wait = max(horizons_s[0] * 1000, 7 * DAY_MS) + horizons_s[0] * 1000 + lateness_ms
        first = datetime.fromtimestamp((summary.start_ms + wait) / 1000, UTC)
        reason += f"; labels of {horizons_s[0] // 86_400} days exist from {first:%Y-%m-%d} on"
    return RetrainReport(made.id, {}, promoted, reason)
