"""Train a net from point-in-time examples: many cut-offs per user, one pass per user.

One loop for every family of scoring.zoo.NETS. The steps of a batch's users go through the net
once, in parallel, and its readout is taken at each of a user's cut-offs; sequences are not cut,
gradients reach back to the first step. Losses are in scoring.training.losses, on mature labels
only, and beside them a teacher's word where there is one (scoring.training.teacher). A part of the
users is held out; training stops when the later cut-offs of those are no longer better predicted,
by the same loss, and keeps the best weights. The same examples, settings and teacher give the same
net.

Shapes as in scoring.training.examples. torch is imported here: the extra `train`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurestore.features import STATIC
from featurestore.vector import TOKENS
from scoring import calibration
from scoring.errors import ScoringError, TooLittleData
from scoring.generation import Generation, Manifest, build
from scoring.settings import TrainingSettings
from scoring.training import base_rates, losses
from scoring.training.augmenting import Augment
from scoring.training.batches import Data
from scoring.training.columns import FOLD, Columns
from scoring.training.examples import Examples
from scoring.training.forecasts import score
from scoring.training.splits import held_out, late
from scoring.training.teacher import Teacher
from scoring.zoo import NETS
from scoring.zoo.nets import Frame, Net, Scaling
from scoring.zoo.seen import DRIFTING, NOT_FOR_NETS, moved_by, tokens_moved_by, unseen

Progress = Callable[[str, int, int], None]  # stage, done, in all
Watch = Callable[[int, int, float], None]  # epochs done, in all, held-out loss; may raise to stop

OFFSET = "log_mean_order_value"
# At 80 epochs at most a log of 3,000 users had half of the steps and its spread of values was not
# learned: MAE fell with the other half, and ranking stayed (docs/accuracy.md).
STEPS, EPOCHS = 1200, (12, 160)
MOMENTUM = 0.9


class Family(Protocol):
    """What the module of a net offers.

    Some offer RECIPE, too: settings that they do not take; and COLUMNS: the only ones that they
    read, of the fold's features.
    """

    def new(self, frame: Frame, settings: TrainingSettings) -> Net: ...
    def export(self, net: Net) -> dict[str, bytes]: ...


def family(name: str) -> Family:
    """The module that makes and exports the nets of a family."""
    if name not in NETS:
        raise ScoringError(
            f"{name!r} is no net that is trained here; there are {', '.join(NETS)}: set"
            " training.family to one of them"
        )
    return cast("Family", import_module(NETS[name]))


def resolved(settings: TrainingSettings) -> TrainingSettings:
    """The settings that a family trains with: its own recipe over what is set, where it has one."""
    recipe = getattr(family(settings.family), "RECIPE", {})
    return settings.model_copy(update=recipe)


@dataclass(frozen=True, slots=True)
class Trained:
    """A net with the best held-out loss, and how it got there."""

    net: Net
    losses: list[tuple[float, float]]  # (training, held out) per epoch
    best_epoch: int
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
    torch.manual_seed(settings.seed)
    generator = np.random.default_rng(settings.seed)
    held = held_out(examples, settings)
    mature = examples.mask.any(axis=1)
    if teacher is not None:
        teacher.check(examples)
        mature = mature | teacher.known().any(axis=1)
    fitted = examples.rows(~held & mature)
    aside = held & late(examples)
    narrow = hasattr(family(settings.family), "COLUMNS")
    columns = FOLD if narrow else Columns.of_settings(fitted)
    net = _new_net(fitted, settings, columns)
    loss = _Loss.of(fitted, settings, net, teacher is not None)
    data = Data.of(fitted, None if teacher is None else teacher.rows(~held & mature), columns)
    check = Data.of(examples.rows(aside), None if teacher is None else teacher.rows(aside), columns)
    optimizer = _optimizer(net, settings)
    augment = Augment.of(settings)
    order = np.unique(data.sequence)
    batches = -(-len(order) // settings.users_per_batch)
    epochs = settings.epochs or int(np.clip(-(-STEPS // batches), *EPOCHS))
    patience = max(settings.patience, epochs // 8)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.rate, total_steps=epochs * batches + 1, pct_start=0.1
    )
    best, best_epoch, best_state = float("inf"), 0, copy.deepcopy(net.state_dict())
    seen: list[tuple[float, float]] = []
    for epoch in range(epochs):
        net.train()
        generator.shuffle(order)
        total, count = 0.0, 0
        for part in np.array_split(order, batches):
            found, rows = loss.of_rows(data, np.sort(part), augment)
            optimizer.zero_grad()
            (found + loss.weights()).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total, count = total + float(found.detach()) * rows, count + rows
        net.eval()
        with torch.no_grad():
            now = float(loss.of_rows(check, np.unique(check.sequence))[0])
        seen.append((total / max(count, 1), now))
        if progress is not None:
            progress("train", epoch + 1, epochs)
        if watch is not None:
            watch(epoch + 1, epochs, now)
        if now < best - 1e-5:
            best, best_epoch, best_state = now, epoch, copy.deepcopy(net.state_dict())
        elif epoch - best_epoch >= patience:
            break
    net.load_state_dict(best_state)
    net.eval()
    if net.form == "mean":
        base_rates.settle(net, data)
    return Trained(net, seen, best_epoch, settings, columns, taught=bool(loss.teacher_weight))


@dataclass(frozen=True, slots=True)
class _Loss:
    """The loss of one training, per row."""

    net: Net
    settings: TrainingSettings
    deviation: Tensor  # (H,) of the increments
    teacher_weight: float

    @classmethod
    def of(cls, rows: Examples, settings: TrainingSettings, net: Net, taught: bool) -> _Loss:
        deviation = torch.from_numpy(base_rates.deviations(rows))
        return cls(net, settings, deviation, settings.teacher_weight if taught else 0.0)

    def of_rows(
        self, data: Data, sequences: npt.NDArray[np.int64], augment: Augment | None = None
    ) -> tuple[Tensor, int]:
        """Mean over the rows of some sequences, by labels and teacher; and how many rows."""
        out, labels = data.outputs(self.net, sequences, augment)
        rows = len(out.q)
        found = losses.by_labels(self.settings.loss, out, labels, self.net.unit, self.deviation)
        if self.teacher_weight:
            said = losses.by_teacher(out, labels, data.usual)
            found = (1 - self.teacher_weight) * found + self.teacher_weight * said
        return found / rows, rows

    def weights(self) -> Tensor:
        """The setting `l1`: the sum of the weights' magnitudes, biases and gains apart."""
        if not self.settings.l1:
            return torch.zeros(())
        magnitudes = [p.abs().sum() for p in self.net.parameters() if p.ndim >= 2]
        return self.settings.l1 * torch.stack(magnitudes).sum()


def _optimizer(net: Net, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Weight decay on matrices only: decoupled in AdamW, of the gradient in the other two."""
    plain = [p for p in net.parameters() if p.ndim < 2]
    weights = [p for p in net.parameters() if p.ndim >= 2]
    groups = [
        {"params": weights, "weight_decay": settings.decay},
        {"params": plain, "weight_decay": 0},
    ]
    match settings.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=settings.rate, momentum=MOMENTUM, nesterov=True)
        case "adam":
            return torch.optim.Adam(groups, lr=settings.rate)
        case "adamw":
            return torch.optim.AdamW(groups, lr=settings.rate)


def _new_net(examples: Examples, settings: TrainingSettings, columns: Columns) -> Net:
    """Scaled to the examples, started at their base rates."""
    names = columns.names
    unknown = unseen(examples.seen_types)
    silent, mute = moved_by(unknown) | DRIFTING | NOT_FOR_NETS, tokens_moved_by(unknown)
    steps = examples.tokens if len(examples.tokens) else np.zeros((1, len(TOKENS)), np.float32)
    frame = Frame(
        Scaling.of(steps, np.array([name in mute for name in TOKENS])),
        Scaling.of(columns.read(examples), np.array([name in silent for name in names])),
        len(examples.horizons_s),
        offset=names.index(OFFSET),
        static=STATIC,
        form=losses.form(settings.loss),
    )
    net = family(settings.family).new(frame, settings)
    net.dropout.p = settings.dropout
    base_rates.start(net, examples, settings.loss)
    return net


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
    scale = net.feature_scale.numpy()
    manifest = Manifest(
        family=settings.family,
        horizons_s=examples.horizons_s,
        features=names,
        tokens=TOKENS if net.readout else (),
        trained_features=tuple(n for n, s in zip(names, scale, strict=True) if s > 0),
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
