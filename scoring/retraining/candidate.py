"""Work on one log: fold it, make the candidate, and ask the gate about it.

A candidate is a recipe fitted to all labels that are mature at the end of the log, with what its
refits at the rolling origins say of it: figures by origin, and whether the level corrector helps.
All of that follows from log, settings and seed alone and stands in its manifest; the comparison
with the champion does not.

Shapes as in scoring.training.examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore import times
from featurestore.fold_settings import FoldSettings
from featurestore.settings import FeatureSettings
from featurestore.wording import counted
from scoring.errors import TooLittleData
from scoring.generation import Generation, build, unservable
from scoring.inputs import of_rows
from scoring.judging import metrics
from scoring.outliers import Outliers
from scoring.retraining import gate, origins
from scoring.retraining.corrector import Corrector, Tried, corrected, factor
from scoring.retraining.drift import with_reference
from scoring.retraining.origins import Plan, Said
from scoring.retraining.scan import LogSummary
from scoring.retraining.settings import RetrainSettings
from scoring.training.examples import ExampleBuilder, Examples, Log, rolling_cutoffs
from scoring.training.recipes import Progress, Recipe, expected, fit
from scoring.training.rows import LEAST_USERS, Ints
from scoring.training.splits import held_out

SAME = "same recipe"  # as the champion's: the gate is passed by identity


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
class Candidate:
    """What a recipe makes of a log."""

    made: Generation  # of everybody: what is published
    apart: Generation  # the same without the users who are held out, for them to judge
    said: dict[int, Said]  # by its refits, at the origins
    facts: dict[str, Any]  # the report


@dataclass(frozen=True, slots=True)
class Work:
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

    def candidate(self, recipe: Recipe, folded: Folded) -> Candidate:
        """The recipe fitted to all that is known, with its figures."""
        learned = folded.learned(recipe)
        refuse_scarce(learned)
        fitted = fit(learned, recipe, unit=self.unit, progress=self.tell)
        made, apart = fitted.whole, fitted.apart()
        taught = self.settings.origin_teachers
        said = self._refits(recipe, folded, "candidate", taught)
        lately = factor(made, learned, folded.plan.column)
        tried = [Tried.at(one.at_ms, one.factor, _bias(one)) for one in said.values()]
        level = Corrector.judged(lately, tried, self.settings.corrector_helps)
        if level.kept:
            made, apart = corrected(made, level.factor), corrected(apart, level.factor)
        newest = learned.rows(learned.window == learned.window.max())
        made = with_reference(made, newest, expected(made, newest)[0])
        beyond = Outliers.of(made.manifest)
        if beyond is not None:
            beyond.add(of_rows(made, newest))
        facts: dict[str, Any] = {
            "validation": self._measure(apart, self._held(recipe, learned)),
            "origins": {
                "asked": folded.plan.asked,
                "horizon": f"d{folded.plan.days}",
                "step_days": self.settings.step_days,
                "note": folded.plan.note,
                "rows": [_row(one) for one in said.values()],
            },
            "level_corrector": level.as_json(),
            "outliers": beyond.as_json() if beyond is not None else None,
            "refitted_to": times.text(int(learned.cutoffs_ms[newest.window[0]])),
        }
        manifest = made.manifest.model_copy(update={"metrics": facts, "recipe": recipe.as_json()})
        made = build(manifest, {name: made.files[name] for name in made.manifest.sha256})
        return Candidate(made, apart, said, dict(facts))

    def against(
        self,
        old: Generation,
        theirs: Recipe | None,
        candidate: Candidate,
        recipe: Recipe,
        folded: Folded,
    ) -> gate.Verdict:
        """The gate's word on the candidate, by the way that suits the two recipes."""
        untrained, said = old.manifest.family == "prior", candidate.said
        readable = folded.examples.readable
        cannot = unservable(old.manifest, self.horizons_s, self.unit, readable)
        if untrained and not cannot and said:
            champion = {at: origins.said(old, folded.examples, at, folded.plan) for at in said}
            return self._by_origins(said, champion, lenient=True)
        if theirs is not None and not theirs.same(recipe) and said:
            taught = self.settings.origin_teachers
            if not taught and theirs.training.teachers != recipe.training.teachers:
                taught = True  # the teachers are what is to be judged
                said = self._refits(recipe, folded, "candidate, taught", taught)
            champion = self._refits(theirs, folded, "champion", taught)
            if said and champion:
                return self._by_origins(said, champion, lenient=False)
        if cannot:
            reason = f"the champion cannot be served any more: {cannot}"
            return gate.Verdict(True, reason, {"how": "none"})
        same = theirs is not None and theirs.same(recipe)
        learned = folded.learned(recipe)
        if same:
            new, rows, whose = candidate.made, self._newest(learned), "all users"
        else:
            new, rows, whose = candidate.apart, self._held(recipe, learned), "users held out"
        column = _column(rows, self.headline)
        verdict = gate.judge(
            rows.value[:, column],
            expected(new, rows)[0][:, column],
            expected(old, rows)[0][:, column],
            rows.user,
            rows.window,
            self.settings,
            lenient=same or untrained,
            where=f"{whose}, {counted(len(np.unique(rows.window)), 'cut-off')}",
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
            "candidate_rows": [_row(one) for one in mine.values()],
        }
        return gate.Verdict(verdict.passed, verdict.reason, facts)

    def _refits(self, recipe: Recipe, folded: Folded, whose: str, taught: bool) -> dict[int, Said]:
        return origins.refits(
            recipe if taught else recipe.untaught(),
            folded.examples,
            folded.grid(recipe),
            folded.plan,
            self.lateness_ms,
            self.settings,
            self.tell,
            whose,
        )

    def _held(self, recipe: Recipe, learned: Examples) -> Examples:
        """`_newest` of the users who are held out."""
        return self._newest(learned.rows(held_out(learned, recipe.training)))

    def _newest(self, learned: Examples) -> Examples:
        """Rows with a mature label at the newest cut-offs with a mature headline."""
        mature = learned.rows(learned.mask[:, _column(learned, self.headline)])
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
        raise TooLittleData("no cut-off of this log has a mature label: give a longer log")
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


def refuse_scarce(learned: Examples) -> None:
    """TooLittleData where a horizon has hardly a label: its head would serve as it was drawn."""
    if learned.scarce:
        raise TooLittleData(
            f"each horizon needs {LEAST_USERS} users with a mature label, there are"
            f" {learned.scarce}: give a longer log, or predict less far"
            " (LIVEVALUE_MODEL__HORIZONS_DAYS and LIVEVALUE_MODEL__HEADLINE). The log begins on"
            f" {times.text(learned.log_start_ms)[:10]}: if that is a stray date, take it out"
        )


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
