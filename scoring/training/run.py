"""One training under way: the net, what it learns from, and what its next step is.

Shapes as in scoring.training.examples. torch is imported here: the extra `train`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurestore.features import STATIC
from featurestore.vector import TOKENS
from scoring.settings import TrainingSettings
from scoring.training import base_rates, losses
from scoring.training.augmenting import Augment
from scoring.training.batches import Data
from scoring.training.columns import FOLD, Columns
from scoring.training.examples import Examples
from scoring.training.families import family
from scoring.training.teacher import Teacher
from scoring.zoo.nets import Frame, Net, Scaling
from scoring.zoo.seen import DRIFTING, NOT_FOR_NETS, moved_by, tokens_moved_by, unseen

Bools = npt.NDArray[np.bool_]

OFFSET = "log_mean_order_value"
# At 80 epochs at most a log of 3,000 users had half of the steps and its spread of values was not
# learned: MAE fell with the other half, and ranking stayed (docs/accuracy.md).
STEPS, EPOCHS = 1200, (12, 160)
MOMENTUM = 0.9


@dataclass(slots=True)
class Run:
    """One training under way."""

    net: Net
    loss: _Loss
    data: Data
    settings: TrainingSettings
    columns: Columns
    steps: int  # of the optimizer, an epoch
    epochs: int  # over which the rate goes up and down
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    augment: Augment | None
    order: npt.NDArray[np.int64]  # of the users
    generator: np.random.Generator

    @classmethod
    def of(
        cls,
        examples: Examples,
        some: Bools,
        settings: TrainingSettings,
        teacher: Teacher | None,
        epochs: int | None = None,
    ) -> Run:
        """On `some` (N,) of the rows, as far as they are labelled or taught."""
        torch.manual_seed(settings.seed)
        known = examples.mask.any(axis=1)
        if teacher is not None:
            known = known | teacher.known().any(axis=1)
        fitted = examples.rows(some & known)
        narrow = hasattr(family(settings.family), "COLUMNS")
        columns = FOLD if narrow else Columns.of_settings(fitted)
        net = _new_net(fitted, settings, columns)
        said = None if teacher is None else teacher.rows(some & known)
        data = Data.of(fitted, said, columns)
        order = np.unique(data.sequence)
        steps = -(-len(order) // settings.users_per_batch)
        epochs = epochs or settings.epochs or int(np.clip(-(-STEPS // steps), *EPOCHS))
        optimizer = _optimizer(net, settings)
        return cls(
            net=net,
            loss=_Loss.of(fitted, settings, net, teacher is not None),
            data=data,
            settings=settings,
            columns=columns,
            steps=steps,
            epochs=epochs,
            optimizer=optimizer,
            schedule=_one_cycle(optimizer, settings.rate, epochs * steps + 1),
            augment=Augment.of(settings),
            order=order,
            generator=np.random.default_rng(settings.seed),
        )

    def data_of(self, examples: Examples, some: Bools, teacher: Teacher | None) -> Data:
        """Other rows as tensors, to be held against."""
        said = None if teacher is None else teacher.rows(some)
        return Data.of(examples.rows(some), said, self.columns)

    def epoch(self) -> float:
        """Every user once; the mean loss of a row."""
        self.net.train()
        self.generator.shuffle(self.order)
        total, count = 0.0, 0
        for part in np.array_split(self.order, self.steps):
            found, rows = self.loss.of_rows(self.data, np.sort(part), self.augment)
            self.optimizer.zero_grad()
            (found + self.loss.weights()).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            total, count = total + float(found.detach()) * rows, count + rows
        self.net.eval()
        return total / max(count, 1)


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


def _one_cycle(
    optimizer: torch.optim.Optimizer, rate: float, total: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """Up for a tenth of `total` steps, then down.

    torch divides by share * total - 1, the steps of the way up: 0 where `total` is 10. So it is
    one at least, which leaves every run of 20 steps and more as it was.
    """
    up = max(0.1, 2 / total)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total, pct_start=up)


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
