"""Retrain: log in, generation out, promoted if it is no worse than the champion.

A plain function that cron, Airflow or Kubernetes can call as often as they like: the same log,
settings and seed give the same bytes, hence the same id, and publishing or promoting them again
changes nothing. In order:

1. scan    one look at the log: its ends, its size, whether it holds anything to learn from;
2. fold    examples at the grid of cut-offs that are trained on, and at the rolling origins;
3. train   the candidate on all labels that are mature by the newest cut-off, calibrated;
4. origins the candidate's recipe refitted at each (`origins`): its own level and ranking as
           they would have been, and whether the level corrector helps (`corrector`);
5. check   the conformance suite (scoring.checks): what breaks it is never published;
6. gate    against the champion (`gate`), whose recipe is refitted at the origins, too, where
           it is another one.

The manifest holds what follows from the log alone (recipe, figures by origin, corrector), so that
its id does not depend on who was champion; the comparison stands in the report. Where there is too
little to learn from, for any one of the horizons, `prior` is published, and the report says from
which date labels of which horizon will exist.

Takes an iterable of events, never a topic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from featurestore import times
from featurestore.fold_settings import FoldSettings
from featurestore.settings import FeatureSettings
from featurestore.vector import TOKENS
from featurestore.wording import counted
from scoring import checks
from scoring.errors import RegistryError, RegistryUnavailable, ScoringError, TooLittleData
from scoring.generation import Generation, prior
from scoring.inputs import FEATURE_NAMES
from scoring.registry import Registry
from scoring.retraining.candidate import Work
from scoring.retraining.scan import LogSummary, check, scan
from scoring.retraining.settings import RetrainSettings
from scoring.settings import ModelSettings, TrainingSettings
from scoring.training.examples import Log, labels_from_ms
from scoring.training.recipes import Progress, Recipe
from scoring.training.trainable import accepted


@dataclass(frozen=True, slots=True)
class RetrainReport:
    """What a retrain did; `livevalue retrain --json` holds it."""

    generation: str
    metrics: dict[str, Any]
    promoted: bool
    reason: str
    passed: bool = False  # the gate's word, whether or not a promotion was asked for
    trained: bool = True  # False: there was too little to learn from
    # What became of the events in the fold, by outcome: of all users, or of those drawn where there
    # are too many. Empty where nothing was folded.
    outcomes: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


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
    how = accepted(training or TrainingSettings())  # refused before the log is read
    recipe = Recipe(how, settings.cutoffs, settings.windows)
    tell = progress or (lambda stage, done, total: None)
    tell("scan", 0, None)
    summary = scan(log())
    lateness_ms = int(FoldSettings.of(features, sources).lateness_ms.max())
    horizons_s = tuple(days * 86_400 for days in model.horizons_days)
    headline = model.horizons_days.index(int(model.headline.removeprefix("d")))
    champion = await registry.champion()
    old, lost = await _champion(registry, champion)
    theirs = Recipe.of(old.manifest) if old is not None else None
    work = Work(summary, lateness_ms, horizons_s, headline, settings, unit, tell)
    outcomes: Mapping[str, int] = {}
    try:
        check(summary, flat_prices=settings.flat_prices)
        folded = work.fold(log(), features, sources, [r for r in (recipe, theirs) if r])
        outcomes = folded.examples.outcomes
        candidate = work.candidate(recipe, folded)
    except TooLittleData as error:
        prior_report = await _fall_back(
            registry, model, champion, summary, lateness_ms, horizons_s, error, promote
        )
        return replace(prior_report, outcomes=outcomes)
    made, facts = candidate.made, candidate.facts
    names = made.manifest.features or FEATURE_NAMES
    checks.require(
        made,
        checks.Sample.drawn(64, 3, len(names), len(TOKENS)),
        checks.untrained(made, names),
    )
    if champion is None:
        passed, reason = True, "there was no champion before"
    elif champion == made.id:
        passed, reason = True, "the same generation as the champion: nothing has changed"
    elif old is None:
        passed, reason = True, f"the champion cannot be loaded any more: {lost}"
    else:
        verdict = work.against(old, theirs, candidate, recipe, folded)
        passed, reason = verdict.passed, verdict.reason
        facts["against_champion"] = {"champion": champion, **verdict.facts}
    await registry.publish(made)
    if passed and promote:
        await registry.promote(made.id)
    done = passed and promote
    return RetrainReport(made.id, facts, done, reason, passed, outcomes=outcomes)


async def _champion(registry: Registry, champion: str | None) -> tuple[Generation | None, str]:
    """The champion's files, or why they cannot be loaded."""
    if champion is None:
        return None, ""
    try:
        return await registry.get(champion), ""
    except RegistryUnavailable:
        raise  # no reason to pass the gate: its files may be there in a minute
    except (RegistryError, ScoringError) as error:
        return None, str(error)


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
    later = [
        f"of {counted(seconds // 86_400, 'day')} from {times.text(at_ms)[:10]}"
        for seconds in horizons_s
        if (at_ms := labels_from_ms(summary.start_ms, horizons_s, lateness_ms, seconds))
        > summary.clock_ms
    ]
    if summary.events and later:
        reason += f"; labels exist {', '.join(later)} on"
    return RetrainReport(made.id, {}, promoted, reason, trained=False)
