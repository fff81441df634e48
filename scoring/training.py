"""Train the minGRU from point-in-time examples: many cut-offs per user, one pass per user.

The steps of a batch's users go through the net once, in parallel, and the carry is read at each
of a user's cut-offs; sequences are not cut, gradients reach back to the first step. Loss per
increment between horizons, on mature labels only:
- cross-entropy of the hurdle (a positive value event in the increment),
- negative log-likelihood of the lognormal where value came (ZILN, arXiv:1912.07753),
- cross-entropy of the hazard: first activity in the increment among those not active before,
  which is the likelihood of `p_active` at all horizons at once.
A part of the users is held out; training stops when the later cut-offs of those are no longer
better predicted, and keeps the best weights. The same examples and seed give the same net.

Shapes as in scoring.examples. torch is imported here: the extra `train`.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from featurestore.features import FEATURES, STATIC
from featurestore.vector import TOKENS
from scoring import calibration
from scoring.errors import TooLittleData
from scoring.examples import Examples
from scoring.generation import Generation, Manifest, build
from scoring.interface import Floats
from scoring.seen import moved_by, tokens_moved_by, unseen
from scoring.settings import TrainingSettings
from scoring.zoo.mingru import GRAPH, WEIGHTS
from scoring.zoo.mingru_net import Net, Scaling, export

Progress = Callable[[str, int, int], None]  # stage, done, in all
Watch = Callable[[int, int, float], None]  # epochs done, in all, held-out loss; may raise to stop

OFFSET = "log_mean_order_value"
# The log's age names the cut-off, so a net learns past seasons by it and is asked beyond all it
# saw ever after. Without: Online Retail 90 d nGini .779 for .772 and bias .87 for .69 (means of
# three seeds), CDNOW 13 weeks unchanged at .688.
DRIFTING = frozenset(["log_age"])
STEPS, EPOCHS = 1200, (12, 80)


@dataclass(frozen=True, slots=True)
class Trained:
    """A net with the best held-out loss, and how it got there."""

    net: Net
    losses: list[tuple[float, float]]  # (training, held out) per epoch
    best_epoch: int


@dataclass(frozen=True, slots=True)
class _Data:
    """Examples as tensors, rows sorted by sequence."""

    tokens: Tensor  # (S, T)
    starts: npt.NDArray[np.int64]  # (Q + 1,)
    sequence: npt.NDArray[np.int64]  # (N,) ascending
    position: Tensor
    features: Tensor
    between: Tensor  # (N, H) float
    at_risk: Tensor  # (N, H) float, not active before the increment
    log_value: Tensor  # (N, H)
    paid: Tensor  # (N, H) float, value came in the increment
    mask: Tensor  # (N, H) float


def train(
    examples: Examples,
    settings: TrainingSettings,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Train on everything but the held-out users; needs a few hundred active rows."""
    if int((examples.between & examples.mask).sum()) < settings.least_orders:
        raise TooLittleData(
            f"fewer than {settings.least_orders} increments with value among the mature labels:"
            " wait for a longer log, or stay on the `prior` generation"
        )
    torch.manual_seed(settings.seed)
    generator = np.random.default_rng(settings.seed)
    held = held_out(examples, settings)
    fitted = examples.rows(~held & examples.mask.any(axis=1))
    checked = examples.rows(held & _late(examples))
    net = _new_net(fitted, settings)
    data, check = _data(fitted), _data(checked)
    dropout = torch.nn.Dropout(settings.dropout)
    plain = [p for n, p in net.named_parameters() if p.ndim < 2]
    weights = [p for n, p in net.named_parameters() if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": settings.decay}, {"params": plain, "weight_decay": 0}],
        lr=settings.rate,
    )
    order = np.unique(data.sequence)
    batches = -(-len(order) // settings.users_per_batch)
    epochs = settings.epochs or int(np.clip(-(-STEPS // batches), *EPOCHS))
    patience = max(settings.patience, epochs // 8)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.rate, total_steps=epochs * batches + 1, pct_start=0.1
    )
    best, best_epoch, best_state = float("inf"), 0, copy.deepcopy(net.state_dict())
    losses: list[tuple[float, float]] = []
    for epoch in range(epochs):
        net.train()
        generator.shuffle(order)
        total, count = 0.0, 0
        for part in np.array_split(order, batches):
            loss, rows = _loss(net, data, np.sort(part), dropout)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total, count = total + float(loss.detach()) * rows, count + rows
        net.eval()
        with torch.no_grad():
            now = float(_loss(net, check, np.unique(check.sequence), None)[0])
        losses.append((total / max(count, 1), now))
        if progress is not None:
            progress("train", epoch + 1, epochs)
        if watch is not None:
            watch(epoch + 1, epochs, now)
        if now < best - 1e-5:
            best, best_epoch, best_state = now, epoch, copy.deepcopy(net.state_dict())
        elif epoch - best_epoch >= patience:
            break
    net.load_state_dict(best_state)
    return Trained(net.eval(), losses, best_epoch)


def held_out(examples: Examples, settings: TrainingSettings) -> npt.NDArray[np.bool_]:
    """(N,) rows of users kept from training, by a hash of the name: the next retrain's too.

    Labels of neighbouring cut-offs overlap, so a later cut-off of a user who is trained on would
    be no test. Small logs hold out more, up to 2,000 users or 40 %: a gate needs users.
    """
    count = max(1, len(examples.users))
    share = max(settings.held_out, min(0.4, 2000 / count))
    salt = f"{settings.seed}:"
    drawn = np.array([zlib.crc32((salt + user).encode()) for user in examples.users])
    return drawn[examples.user] < share * (1 << 32)


def newest(examples: Examples, windows: int) -> npt.NDArray[np.bool_]:
    """(N,) rows of the newest cut-offs at which each horizon is mature: what to calibrate on."""
    keep = np.zeros(len(examples), bool)
    for mature in examples.mask.T:
        keep |= np.isin(examples.window, np.unique(examples.window[mature])[-windows:])
    return keep


def _late(examples: Examples) -> npt.NDArray[np.bool_]:
    """(N,) rows of the newest half of the cut-offs that have any mature label."""
    mature = np.unique(examples.window[examples.mask.any(axis=1)])
    late = mature[len(mature) // 2 :]
    return np.isin(examples.window, late) & examples.mask.any(axis=1)


def _new_net(examples: Examples, settings: TrainingSettings) -> Net:
    """Scaled to the examples, started at their base rates."""
    horizons = len(examples.horizons_s)
    names = [feature.name for feature in FEATURES]
    unknown = unseen(examples.seen_types)
    silent, mute = moved_by(unknown) | DRIFTING, tokens_moved_by(unknown)
    steps = examples.tokens if len(examples.tokens) else np.zeros((1, len(TOKENS)), np.float32)
    net = Net(
        Scaling.of(steps, np.array([name in mute for name in TOKENS])),
        Scaling.of(examples.features, np.array([name in silent for name in names])),
        horizons,
        offset=names.index(OFFSET),
        width=settings.width,
        static=STATIC,
    )
    value, mask = examples.increments(), examples.mask
    before = np.logical_or.accumulate(examples.between, axis=1)
    risk = mask & ~np.concatenate([np.zeros((len(before), 1), bool), before[:, :-1]], axis=1)
    own = examples.features[:, names.index(OFFSET)]
    with torch.no_grad():
        net.out.weight.mul_(0.3)
        bias = net.out.bias.view(4, horizons)
        for h in range(horizons):
            paid = (value[:, h] > 0) & mask[:, h]
            bias[0, h] = _logit(examples.between[mask[:, h], h])
            bias[3, h] = _logit(examples.between[risk[:, h], h])
            if paid.sum() > 1:
                gap = np.log(value[paid, h]) - own[paid]
                bias[1, h] = float(gap.mean())
                bias[2, h] = float(np.log(np.expm1(np.clip(gap.std(), 0.1, 2.0))))
                # the largest order that a fold of 1,000 spenders would show, doubled
                net.log_cap[h] = float(np.log(2 * np.quantile(value[paid, h], 0.999)))
    return net


def _logit(flags: npt.NDArray[np.bool_]) -> float:
    p = (float(flags.sum()) + 0.5) / (len(flags) + 1)
    return float(np.log(p / (1 - p)))


def _data(examples: Examples) -> _Data:
    order = np.argsort(examples.sequence, kind="stable")
    rows = examples.rows(order)
    value = rows.increments()
    paid = value > 0
    before = np.logical_or.accumulate(rows.between, axis=1)
    at_risk = ~np.concatenate([np.zeros((len(rows), 1), bool), before[:, :-1]], axis=1)

    def floats(a: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(a, np.float32, order="C"))

    return _Data(
        tokens=floats(rows.tokens),
        starts=rows.starts,
        sequence=rows.sequence,
        position=torch.from_numpy(rows.position),
        features=floats(rows.features),
        between=floats(rows.between),
        at_risk=floats(at_risk),
        log_value=floats(np.log(np.where(paid, value, 1.0))),
        paid=floats(paid),
        mask=floats(rows.mask),
    )


def _loss(
    net: Net,
    data: _Data,
    sequences: npt.NDArray[np.int64],
    dropout: torch.nn.Module | None,
) -> tuple[Tensor, int]:
    """Mean loss per row of the rows of some sequences (ascending), and how many rows."""
    rows = _rows_of(data.sequence, sequences)
    carry = carries(
        net, data.tokens, data.starts, sequences, data.sequence[rows], data.position[rows]
    )
    q, mu, sigma, hazard = net.head(carry, data.features[rows], dropout)
    between, mask, paid = data.between[rows], data.mask[rows], data.paid[rows]
    hurdle = functional.binary_cross_entropy_with_logits(q, between, reduction="none")
    first = functional.binary_cross_entropy_with_logits(hazard, between, reduction="none")
    z = (data.log_value[rows] - mu) / sigma
    severity = torch.log(sigma) + z.square() / 2
    loss = mask * (hurdle + data.at_risk[rows] * first + paid * severity)
    return loss.sum() / len(rows), len(rows)


def carries(
    net: Net,
    tokens: Tensor,
    starts: npt.NDArray[np.int64],
    sequences: npt.NDArray[np.int64],
    of: npt.NDArray[np.int64],
    position: Tensor,
) -> Tensor:
    """(N, 2W) the carry of each row: sequence `of` (N,), one of `sequences`, after `position`."""
    lengths = starts[sequences + 1] - starts[sequences]
    begin = np.concatenate([[0], np.cumsum(lengths)])
    at = np.arange(begin[-1]) + np.repeat(starts[sequences] - begin[:-1], lengths)
    ranks = np.arange(begin[-1]) - np.repeat(begin[:-1], lengths)
    after = net.sequence(tokens[torch.from_numpy(at)], torch.from_numpy(ranks))
    # row 0 is the carry of a user without a step
    whole = torch.cat([torch.zeros(1, 2 * net.width), after])
    offset = torch.from_numpy(begin[:-1][np.searchsorted(sequences, of)])
    return whole[torch.where(position > 0, offset + position, torch.zeros_like(offset))]


def _rows_of(
    sorted_by: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    low = np.searchsorted(sorted_by, wanted, side="left")
    count = np.searchsorted(sorted_by, wanted, side="right") - low
    begin = np.cumsum(count) - count
    rows: npt.NDArray[np.int64] = np.arange(count.sum()) + np.repeat(low - begin, count)
    return rows


def generation(
    trained: Trained,
    examples: Examples,
    *,
    unit: str = "",
    calibrate_on: npt.NDArray[np.bool_] | None = None,
    metrics: dict[str, Any] | None = None,
) -> Generation:
    """Export, calibrate the exported file on some rows, and name what it was trained on."""
    graph, weights = export(trained.net)
    names = [feature.name for feature in FEATURES]
    scale = trained.net.feature_scale.numpy()
    manifest = Manifest(
        family="mingru",
        horizons_s=examples.horizons_s,
        features=tuple(names),
        tokens=TOKENS,
        trained_features=tuple(n for n, s in zip(names, scale, strict=True) if s > 0),
        trained_until_ms=examples.clock_ms,
        log_start_ms=examples.log_start_ms,
        seen_types=examples.seen_types,
        unit=unit,
        params={"width": trained.net.width},
        metrics=metrics or {},
    )
    made = build(manifest, {GRAPH: graph, WEIGHTS: weights})
    if calibrate_on is None or not calibrate_on.any():
        return made
    rows = examples.rows(calibrate_on)
    raw = made.model.predict(carry_rows(made, rows), rows.features[:, None])
    fitted = calibration.fit(
        raw.expected[:, 0], raw.p_active[:, 0], rows.value, rows.active, rows.mask
    )
    manifest = manifest.model_copy(update={"calibration": fitted.dump()})
    return build(manifest, {GRAPH: graph, WEIGHTS: weights})


def carry_rows(made: Generation, rows: Examples) -> Floats:
    """(N, C) carries of examples by the served steps of a generation."""
    n = len(rows)
    zero = np.zeros((n, made.model.carry_size), np.float32)
    if not made.model.carry_size:
        return zero
    begin = rows.starts[rows.sequence]
    count = rows.position
    first = np.cumsum(count) - count
    at = np.arange(count.sum()) + np.repeat(begin - first, count)
    who = np.repeat(np.arange(n, dtype=np.int32), count)
    return made.model.advance(zero, who, rows.tokens[at])
