"""Examples as tensors, and the part of them that one step of the optimizer looks at.

Rows are sorted by sequence, so that the rows of some sequences, and their steps, are runs.

Shapes: N rows, H horizons, S steps of Q sequences end to end, T tokens, as in
scoring.training.examples.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scoring.training.augmenting import Augment
from scoring.training.columns import FOLD, Columns
from scoring.training.examples import Examples
from scoring.training.teacher import Teacher
from scoring.zoo.nets import Net, Outputs

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labels:
    """What rows are held against, (N, H) floats each; flags are 0 or 1."""

    between: Tensor  # a positive value event in the increment
    at_risk: Tensor  # not active before the increment
    value: Tensor  # of the increment
    log_value: Tensor  # where it is positive, else 0
    paid: Tensor  # it is positive
    mask: Tensor  # mature
    taught: Tensor  # the teacher says something of the horizon
    teacher_expected: Tensor  # of the horizon, 0 where nothing is said
    teacher_active: Tensor

    def rows(self, keep: Tensor) -> Labels:
        """Of some of the rows."""
        return Labels(*(getattr(self, field.name)[keep] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Data:
    """All rows of a training, or of what stops it."""

    tokens: Tensor  # (S, T)
    starts: Ints  # (Q + 1,)
    sequence: Ints  # (N,) ascending
    position: Ints  # (N,)
    features: Tensor  # (N, F)
    labels: Labels
    usual: Tensor  # (H,) the teacher's mean expected value

    @classmethod
    def of(
        cls, examples: Examples, teacher: Teacher | None = None, columns: Columns = FOLD
    ) -> Data:
        """`teacher` in the order of the examples; `columns` that the net reads."""
        order = np.argsort(examples.sequence, kind="stable")
        rows = examples.rows(order)
        value = rows.increments()
        paid = value > 0
        before = np.logical_or.accumulate(rows.between, axis=1)
        at_risk = ~np.concatenate([np.zeros((len(rows), 1), bool), before[:, :-1]], axis=1)
        nothing = np.zeros(value.shape, np.float32)
        said = Teacher(nothing, nothing) if teacher is None else teacher.rows(order)
        known = np.zeros(value.shape, bool) if teacher is None else said.known()
        expected = np.where(known, said.expected, 0.0)
        return cls(
            tokens=_floats(rows.tokens),
            starts=rows.starts,
            sequence=rows.sequence,
            position=rows.position,
            features=_floats(columns.read(rows)),
            labels=Labels(
                between=_floats(rows.between),
                at_risk=_floats(at_risk),
                value=_floats(value),
                log_value=_floats(np.log(np.where(paid, value, 1.0))),
                paid=_floats(paid),
                mask=_floats(rows.mask),
                taught=_floats(known),
                teacher_expected=_floats(expected),
                teacher_active=_floats(np.where(known, said.p_active, 0.0)),
            ),
            usual=_floats(np.maximum(expected.sum(0) / np.maximum(known.sum(0), 1), 1e-6)),
        )

    def outputs(
        self, net: Net, sequences: Ints, augment: Augment | None = None
    ) -> tuple[Outputs, Labels]:
        """What a net says of the rows of some sequences (ascending), and their labels."""
        rows = _rows_of(self.sequence, sequences)
        if augment is not None:
            rows = rows[augment.rows(self.sequence[rows])]
        readout = torch.zeros(len(rows), 0)
        if net.readout:
            readout = self._readouts(net, sequences, rows, augment)
        keep = torch.from_numpy(rows)
        return net.head(readout, self.features[keep]), self.labels.rows(keep)

    def _readouts(
        self, net: Net, sequences: Ints, rows: Ints, augment: Augment | None = None
    ) -> Tensor:
        """(N, R) after the steps that each row's user had taken."""
        lengths = self.starts[sequences + 1] - self.starts[sequences]
        begin = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(begin[-1]) + np.repeat(self.starts[sequences] - begin[:-1], lengths)
        ranks = np.arange(begin[-1]) - np.repeat(begin[:-1], lengths)
        tokens = self.tokens[torch.from_numpy(at)]
        left = np.arange(begin[-1] + 1)  # steps left before each
        if augment is not None:
            some, kept = augment.steps(tokens.numpy(), ranks)
            tokens, left = torch.from_numpy(some), np.concatenate([[0], np.cumsum(kept)])
            ranks = left[:-1][kept] - np.repeat(left[begin[:-1]], lengths)[kept]
        after = net.sequence(tokens, torch.from_numpy(ranks))
        # row 0 is of a user without a step
        whole = torch.cat([torch.zeros(1, net.readout), after])
        first = begin[:-1][np.searchsorted(sequences, self.sequence[rows])]
        last, before = left[first + self.position[rows]], left[first]
        return whole[torch.from_numpy(np.where(last > before, last, 0))]


def _floats(a: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(a, np.float32, order="C"))


def _rows_of(sorted_by: Ints, wanted: Ints) -> Ints:
    low = np.searchsorted(sorted_by, wanted, side="left")
    count = np.searchsorted(sorted_by, wanted, side="right") - low
    begin = np.cumsum(count) - count
    rows: Ints = np.arange(count.sum()) + np.repeat(low - begin, count)
    return rows
