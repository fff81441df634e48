"""Train a net from point-in-time examples: many cut-offs per user, one pass per user.

One loop for every family of scoring.zoo.NETS. The steps of a batch's users go through the net
once, in parallel, and its readout is taken at each of a user's cut-offs; sequences are not cut,
gradients reach back to the first step. Losses are in scoring.training.losses, on mature labels
only, and beside them a teacher's word where there is one (scoring.training.teacher). A part of the
users is held out; training stops when the later cut-offs of those are no longer better predicted,
by the same loss, and keeps the best weights. Then another net learns from everybody for as many
epochs (`refit`): it is the one to serve, and the first is the one that held-out users can judge.
The same examples, settings and teacher give the same nets.

Shapes as in scoring.training.examples. torch is imported here: the extra `train`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featurestore.vector import TOKENS
from scoring import calibration, outliers
from scoring.errors import TooLittleData
from scoring.generation import Generation, Manifest, build
from scoring.settings import TrainingSettings
from scoring.training import base_rates
from scoring.training.columns import Columns
from scoring.training.examples import Examples
from scoring.training.families import family, resolved
from scoring.training.forecasts import score
from scoring.training.run import Run
from scoring.training.splits import held_out, late
from scoring.training.teacher import Teacher
from scoring.zoo.nets import CLIP, Net

Progress = Callable[[str, int, int], None]  # stage, done, in all
Watch = Callable[[int, int, float], None]  # epochs done, in all, held-out loss; may raise to stop


@dataclass(frozen=True, slots=True)
class Trained:
    """A net with the best held-out loss, and how it got there."""

    net: Net
    losses: list[tuple[float, float]]  # (training, held out) per epoch
    kept: int  # epochs behind the net: those up to the best one
    epochs: int  # planned
    settings: TrainingSettings  # as resolved
    columns: Columns  # that it reads
    taught: bool  # by a teacher, too


def train(
    examples: Examples,
    settings: TrainingSettings,
    progress: Progress | None = None,
    watch: Watch | None = None,
    *,
    teacher: Teacher | None = None,
) -> Trained:
    """Train on everything but the held-out users; needs a few hundred active rows.

    teacher: what it says of the rows of `examples`, in their order; `teacher_weight` of the loss.
    """
    settings = resolved(settings)
    if int((examples.between & examples.mask).sum()) < settings.least_orders:
        raise TooLittleData(
            f"fewer than {settings.least_orders} increments with value among the mature labels:"
            " wait for a longer log, or stay on the `prior` generation"
        )
    if teacher is not None:
        teacher.check(examples)
    held = held_out(examples, settings)
    run = Run.of(examples, ~held, settings, teacher)
    aside = held & late(examples)
    check = run.data_of(examples, aside, teacher)
    patience = max(settings.patience, run.epochs // 8)
    best, kept, best_state = float("inf"), 0, copy.deepcopy(run.net.state_dict())
    seen: list[tuple[float, float]] = []
    for done in range(1, run.epochs + 1):
        loss = run.epoch()
        with torch.no_grad():
            now = float(run.loss.of_rows(check, np.unique(check.sequence))[0])
        seen.append((loss, now))
        if progress is not None:
            progress("train", done, run.epochs)
        if watch is not None:
            watch(done, run.epochs, now)
        if now < best - 1e-5:
            best, kept, best_state = now, done, copy.deepcopy(run.net.state_dict())
        elif done - max(kept, 1) >= patience:
            break
    run.net.load_state_dict(best_state)
    return _trained(run, seen, kept)


def refit(
    examples: Examples,
    trained: Trained,
    progress: Progress | None = None,
    *,
    teacher: Teacher | None = None,
) -> Trained:
    """Train once more, on everybody, for as many epochs as the held-out users allowed.

    Nobody is left to judge it, but it knows more: of a small log two fifths of the users are held
    out. Source: Goodfellow, Bengio & Courville 2016, "Deep Learning", algorithm 7.2.
    """
    everybody = np.ones(len(examples), bool)
    run = Run.of(examples, everybody, trained.settings, teacher, trained.epochs)
    for done in range(1, trained.kept + 1):
        run.epoch()
        if progress is not None:
            progress("refit", done, trained.kept)
    return _trained(run, trained.losses, trained.kept)


def _trained(run: Run, losses: list[tuple[float, float]], kept: int) -> Trained:
    run.net.eval()
    if run.net.form == "mean":
        base_rates.settle(run.net, run.data)
    taught = bool(run.loss.teacher_weight)
    return Trained(run.net, losses, kept, run.epochs, run.settings, run.columns, taught)


def generation(
    trained: Trained,
    examples: Examples,
    *,
    unit: str = "",
    calibrate_on: npt.NDArray[np.bool_] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Generation:
    """Export, calibrate the exported file on some rows, and name what it was trained on."""
    net, settings = trained.net, trained.settings
    files = {**family(settings.family).export(net), **trained.columns.files()}
    names = trained.columns.names
    mean, scale = net.feature_mean.numpy(), net.feature_scale.numpy()
    read = scale > 0
    reach = CLIP / scale[read]
    trained_features = tuple(n for n, kept in zip(names, read.tolist(), strict=True) if kept)
    manifest = Manifest(
        family=settings.family,
        horizons_s=examples.horizons_s,
        features=names,
        tokens=TOKENS if net.readout else (),
        trained_features=trained_features,
        trained_until_ms=examples.clock_ms,
        log_start_ms=examples.log_start_ms,
        seen_types=examples.seen_types,
        unit=unit,
        params={
            **({"width": net.width} if net.width else {}),
            "loss": settings.loss,
            **({"teacher_weight": settings.teacher_weight} if trained.taught else {}),
            "parameters": sum(p.numel() for p in net.parameters()),
            **trained.columns.facts(),
            **outliers.bounds(trained_features, mean[read] - reach, mean[read] + reach),
        },
        metrics=dict(metrics or {}),
    )
    made = build(manifest, files)
    if calibrate_on is None or not calibrate_on.any():
        return made
    rows = examples.rows(calibrate_on)
    raw = score(made, rows)
    fitted = calibration.fit(
        raw.expected[:, 0], raw.p_active[:, 0], rows.value, rows.active, rows.mask
    )
    manifest = manifest.model_copy(update={"calibration": fitted.dump()})
    return build(manifest, files)
