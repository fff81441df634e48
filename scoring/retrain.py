"""Retrain: log in, generation out, promoted if it is no worse than the champion.

A plain function that cron, Airflow or Kubernetes can call as often as they like: the same log,
settings and seed give the same bytes, hence the same id, and publishing or promoting them again
changes nothing. In order:

1. scan    one look at the log: its ends, its size, whether it holds anything to learn from;
2. fold    examples at the grid of cut-offs that are trained on, and at the rolling origins;
3. train   the candidate on all labels that are mature by the newest cut-off, calibrated;
4. origins the candidate's recipe refitted at each (scoring.origins): its own level and ranking as
           they would have been, and whether the level corrector helps (scoring.corrector);
5. check   the conformance suite (scoring.checks): what breaks it is never published;
6. gate    against the champion (scoring.gate), whose recipe is refitted at the origins, too, where
           it is another one.

The manifest holds what follows from the log alone (recipe, figures by origin, corrector), so that
its id does not depend on who was champion; the comparison stands in the report. Where there is too
little to learn from, `prior` is published, and the report says from which date labels will exist.

Takes an iterable of events, never a topic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from featurestore import times
from featurestore.fold_settings import FoldSettings
from featurestore.settings import FeatureSettings
from featurestore.vector import TOKENS
from scoring import checks, gate, metrics, origins
from scoring.corrector import Corrector, Tried, corrected, factor
from scoring.drift import with_reference
from scoring.errors import RegistryError, ScoringError, TooLittleData
from scoring.examples import DAY_MS, ExampleBuilder, Examples, Ints, Log, rolling_cutoffs
from scoring.generation import Generation, build, prior, unservable
from scoring.inputs import FEATURE_NAMES
from scoring.origins import Plan, Said
from scoring.recipes import Progress, Recipe, expected, fit
from scoring.registry import Registry
from scoring.retrain_settings import RetrainSettings
from scoring.scan import LogSummary, check, scan
from scoring.settings import ModelSettings, TrainingSettings
from scoring.splits import held_out
from scoring.trainable import family

SAME = "same recipe"  # as the champion's: the gate is passed by identity


@dataclass(frozen=True, slots=True)
class RetrainReport:
    """What a retrain did; `livevalue retrain --json` holds it."""

    generation: str
    metrics: dict[str, Any]
    promoted: bool
    reason: str
    passed: bool = False  # the gate's word, whether or not a promotion was asked for
    trained: bool = True  # False: there was too little to learn from

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
    recipe = Recipe(training or TrainingSettings(), settings.cutoffs, settings.windows)
    family(recipe.training.family)  # an unknown one is refused before the log is read
    tell = progress or (lambda stage, done, total: None)
    tell("scan", 0, None)
    summary = scan(log())
    lateness_ms = int(FoldSettings.of(features, sources).lateness_ms.max())
    horizons_s = tuple(days * 86_400 for days in model.horizons_days)
    headline = model.horizons_days.index(int(model.headline.removeprefix("d")))
    champion = await registry.champion()
    old, lost = await _champion(registry, champion)
    theirs = Recipe.of(old.manifest) if old is not None else None
    work = _Work(summary, lateness_ms, horizons_s, headline, settings, unit, tell)
    try:
        check(summary, flat_prices=settings.flat_prices)
        folded = work.fold(log(), features, sources, [r for r in (recipe, theirs) if r])
        made, said, facts = work.candidate(recipe, folded)
    except TooLittleData as error:
        return await _fall_back(
            registry, model, champion, summary, lateness_ms, horizons_s, error, promote
        )
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
        verdict = work.against(old, theirs, made, recipe, said, folded)
        passed, reason = verdict.passed, verdict.reason
        facts["against_champion"] = {"champion": champion, **verdict.facts}
    await registry.publish(made)
    if passed and promote:
        await registry.promote(made.id)
    return RetrainReport(made.id, facts, passed and promote, reason, passed)


async def _champion(registry: Registry, champion: str | None) -> tuple[Generation | None, str]:
    """The champion's files, or why they cannot be loaded."""
    if champion is None:
        return None, ""
    try:
        return await registry.get(champion), ""
    except (RegistryError, ScoringError) as error:
        return None, str(error)


@dataclass(frozen=True, slots=True)
class Folded:
    """One fold: rows at the cut-offs that are trained on, and at the origins."""

    examples: Examples
    plan: Plan
    grids_ms: dict[int, Ints]  # cut-offs that are trained on, by how many were asked for

    def grid(self, recipe: Recipe) -> Ints:
        """The cut-offs that a recipe learns from."""
        return self.grids_ms[recipe.cutoffs]

    def learned(self, recipe: Recipe) -> Examples:
        """Rows at those, with whatever label is mature at the end of the log."""
        rows = self.examples
        return rows.rows(np.isin(rows.cutoffs_ms[rows.window], self.grid(recipe)))


@dataclass(frozen=True, slots=True)
class _Work:
    """One retrain on one log."""

    summary: LogSummary
    lateness_ms: int
    horizons_s: tuple[int, ...]
    headline: int
    settings: RetrainSettings
    unit: str
    tell: Progress

    def fold(
        self,
        log: Log,
        features: FeatureSettings,
        sources: Sequence[str],
        recipes: Sequence[Recipe],
    ) -> Folded:
        """Examples at all cut-offs that are needed; TooLittleData where no label is mature."""
        start_ms, clock_ms = self.summary.start_ms, self.summary.clock_ms
        grids = {
            most: rolling_cutoffs(start_ms, clock_ms, self.horizons_s, self.lateness_ms, most)
            for most in {recipe.cutoffs for recipe in recipes}
        }
        first = grids[recipes[0].cutoffs]
        plan = origins.plan(clock_ms, self.horizons_s, self.lateness_ms, first, self.settings)
        cutoffs = np.unique(np.concatenate([*grids.values(), plan.at_ms]))
        examples = fold_log(
            log,
            self.summary,
            features,
            sources,
            self.horizons_s,
            self.settings,
            self.tell,
            cutoffs if len(first) else first,
        )
        return Folded(examples, plan, grids)

    def candidate(
        self, recipe: Recipe, folded: Folded
    ) -> tuple[Generation, dict[int, Said], dict[str, Any]]:
        """(generation with its figures, what its recipe says at origins, the report)."""
        learned = folded.learned(recipe)
        made = fit(learned, recipe, unit=self.unit, progress=self.tell)
        said = self._refits(recipe, folded, "candidate")
        lately = factor(made, learned, folded.plan.column)
        tried = [Tried.at(one.at_ms, one.factor, _bias(one)) for one in said.values()]
        level = Corrector.judged(lately, tried, self.settings.corrector_helps)
        if level.kept:
            made = corrected(made, level.factor)
        newest = learned.rows(learned.window == learned.window.max())
        made = with_reference(made, newest, expected(made, newest)[0])
        facts: dict[str, Any] = {
            "validation": self._measure(made, self._held(recipe, learned)),
            "origins": {
                "asked": folded.plan.asked,
                "horizon": f"d{folded.plan.days}",
                "step_days": self.settings.step_days,
                "note": folded.plan.note,
                "rows": [_row(one) for one in said.values()],
            },
            "level_corrector": level.as_json(),
            "refitted_to": times.text(int(learned.cutoffs_ms[newest.window[0]])),
        }
        manifest = made.manifest.model_copy(update={"metrics": facts, "recipe": recipe.as_json()})
        made = build(manifest, {name: made.files[name] for name in made.manifest.sha256})
        return made, said, dict(facts)

    def against(
        self,
        old: Generation,
        theirs: Recipe | None,
        made: Generation,
        recipe: Recipe,
        said: dict[int, Said],
        folded: Folded,
    ) -> gate.Verdict:
        """The gate's word on the candidate, by the way that suits the two recipes."""
        untrained = old.manifest.family == "prior"
        cannot = unservable(old.manifest, self.horizons_s, self.unit)
        if untrained and not cannot and said:
            champion = {at: origins.said(old, folded.examples, at, folded.plan) for at in said}
            return self._by_origins(said, champion, lenient=True)
        if theirs is not None and not theirs.same(recipe) and said:
            champion = self._refits(theirs, folded, "champion")
            if champion:
                return self._by_origins(said, champion, lenient=False)
        if cannot:
            reason = f"the champion cannot be served any more: {cannot}"
            return gate.Verdict(True, reason, {"how": "none"})
        same = theirs is not None and theirs.same(recipe)
        rows = self._held(recipe, folded.learned(recipe))
        column = _column(rows, self.headline)
        verdict = gate.judge(
            rows.value[:, column],
            expected(made, rows)[0][:, column],
            expected(old, rows)[0][:, column],
            rows.user,
            rows.window,
            self.settings,
            lenient=same or untrained,
            where=f"users held out of training, {len(np.unique(rows.window))} cut-offs",
        )
        reason = f"{SAME} as the champion's; its file: {verdict.reason}" if same else verdict.reason
        facts = {"how": "files", "same_recipe": same, **verdict.facts}
        return gate.Verdict(verdict.passed, reason, facts)

    def _by_origins(
        self, mine: dict[int, Said], theirs: dict[int, Said], *, lenient: bool
    ) -> gate.Verdict:
        verdict = gate.by_origins(mine, theirs, self.settings, lenient=lenient)
        facts = {
            "how": "origins",
            "same_recipe": False,
            **verdict.facts,
            "rows": [_row(one) for one in theirs.values()],
        }
        return gate.Verdict(verdict.passed, verdict.reason, facts)

    def _refits(self, recipe: Recipe, folded: Folded, whose: str) -> dict[int, Said]:
        return origins.refits(
            recipe,
            folded.examples,
            folded.grid(recipe),
            folded.plan,
            self.lateness_ms,
            self.settings,
            self.tell,
            whose,
        )

    def _held(self, recipe: Recipe, learned: Examples) -> Examples:
        """Rows of users held out of training, at the newest cut-offs with a mature headline."""
        held = held_out(learned, recipe.training) & learned.mask.any(axis=1)
        rows = learned.rows(held)
        mature = rows.rows(rows.mask[:, _column(rows, self.headline)])
        newest = np.unique(mature.window)[-self.settings.windows :]
        return mature.rows(np.isin(mature.window, newest))

    def _measure(self, made: Generation, rows: Examples) -> dict[str, Any]:
        """Metrics by horizon, mean over the cut-offs in which it is mature."""
        said, p_active = expected(made, rows)
        out: dict[str, Any] = {}
        for h, seconds in enumerate(self.horizons_s):
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
        out["rows"], out["headline"] = len(rows), f"d{self.horizons_s[self.headline] // 86_400}"
        return out


def fold_log(
    log: Log,
    summary: LogSummary,
    features: FeatureSettings,
    sources: Sequence[str],
    horizons_s: Sequence[int],
    settings: RetrainSettings,
    tell: Progress,
    cutoffs_ms: Ints | None = None,
) -> Examples:
    """Examples at rolling cut-offs, or those given; TooLittleData where no label is mature."""
    lateness_ms = int(FoldSettings.of(features, sources).lateness_ms.max())
    if cutoffs_ms is None:
        cutoffs_ms = rolling_cutoffs(
            summary.start_ms, summary.clock_ms, horizons_s, lateness_ms, settings.cutoffs
        )
    if not summary.events or not len(cutoffs_ms):
        raise TooLittleData("no cut-off of this log has a mature label")
    share = min(
        1.0,
        settings.most_users / max(1, summary.users),
        settings.most_events / max(1, summary.events),
    )
    builder = ExampleBuilder(
        features, sources, horizons_s, cutoffs_ms, log_start_ms=summary.start_ms, share=share
    )
    done = 0
    for partition, batch in log:
        builder.add(partition, batch)
        done += batch.size
        tell("fold", done, summary.events)
    return builder.finish()


def _column(rows: Examples, headline: int) -> int:
    """The headline's column, or the longest horizon with a mature label."""
    column = headline
    while column > 0 and not rows.mask[:, column].any():
        column -= 1
    return column


def _bias(said: Said) -> float:
    return metrics.bias(said.rows.value[:, said.column], said.expected)


def _row(said: Said) -> dict[str, Any]:
    """One origin, for the manifest and the report."""
    value = said.rows.value[:, said.column]
    return {
        "as_of": times.text(said.at_ms),
        "users": len(said.rows),
        "trained_on": said.trained_on,
        "ngini": _round(metrics.ngini(value, said.expected)),
        "bias": _round(metrics.bias(value, said.expected)),
    }


def _mean(values: Sequence[float]) -> float | None:
    known = [v for v in values if np.isfinite(v)]
    return round(float(np.mean(known)), 5) if known else None


def _round(number: float) -> float | None:
    return round(float(number), 5) if np.isfinite(number) else None


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
    wait = max(horizons_s[0] * 1000, 7 * DAY_MS) + horizons_s[0] * 1000 + lateness_ms
    first_ms = summary.start_ms + wait
    if summary.events and first_ms > summary.clock_ms:
        first = datetime.fromtimestamp(first_ms / 1000, UTC)
        reason += f"; labels of {horizons_s[0] // 86_400} days exist from {first:%Y-%m-%d} on"
    return RetrainReport(made.id, {}, promoted, reason, trained=False)
