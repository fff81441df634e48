"""What every model family promises, as one suite that each of them must pass.

`check` runs a generation on ordinary and on absurd input and returns what it breaks, in words; an
empty list is a pass. Tests run it on every family; `require` is for whoever publishes a
generation: a broken model must not reach a worker.

After river's habit: one conformance suite, run on every model.
Shapes as in scoring.interface; M steps in all, of U users.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from featurestore.features import STATIC
from featurestore.wording import counted
from scoring.errors import GenerationError
from scoring.generation import Generation, dump, load
from scoring.interface import Floats, Prediction, ValueModel

BATCHES = (1, 7, 1024)
CLOSE = 1e-5  # relative to 1 + |value|: CPUs and batch sizes round differently


@dataclass(frozen=True, slots=True)
class Sample:
    """Input to try a family on."""

    features: Floats  # (U, K, F)
    rows: npt.NDArray[np.int32]  # (M,) user of each step, steps of one user in order
    tokens: Floats  # (M, T)

    @classmethod
    def drawn(
        cls, users: int, knots: int, features: int, tokens: int, seed: int = 0, steps: int = 4
    ) -> Sample:
        """Positive, skewed input as counts, gaps and money are; some users without a step.

        Columns that do not depend on the query time are the same at every knot, as the encoder
        makes them: a family may read them once.
        """
        rng = np.random.default_rng(seed)
        values = rng.lognormal(0, 1.5, (users, knots, features)).astype(np.float32)
        values[rng.random(values.shape) < 0.3] = 0
        values[:, :, :STATIC] = values[:, :1, :STATIC]
        rows = rng.integers(0, users, users * steps).astype(np.int32)
        return cls(values, rows, rng.normal(size=(len(rows), tokens)).astype(np.float32))


class _Found:
    """Collects what is broken."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def expect(self, right: bool | np.bool_, claim: str) -> None:
        if not right:
            self.failures.append(claim)


def require(generation: Generation, sample: Sample, unseen: npt.NDArray[np.intp]) -> None:
    """Raise a GenerationError that lists what `check` found."""
    failures = check(generation, sample, unseen)
    if failures:
        raise GenerationError(
            f"generation {generation.short} of family {generation.manifest.family} breaks"
            f" {counted(len(failures), 'promise')} and is not published: {'; '.join(failures)}"
        )


def check(generation: Generation, sample: Sample, unseen: npt.NDArray[np.intp]) -> list[str]:
    """What the generation breaks; `unseen` are feature columns that it was not trained on."""
    found = _Found()
    model = generation.model
    carries = model.advance(_zeros(model, len(sample.features)), sample.rows, sample.tokens)
    made = model.predict(carries, sample.features)
    _check_shapes(found, model, sample.features, made)
    if found.failures:
        return found.failures  # the rest would only stumble over these
    _check_order(found, made, "")
    for name, features in _absurd(sample.features):
        _check_order(found, model.predict(carries, features), f" for {name}")
    _check_steps(found, model, sample, carries)
    _check_batches(found, model, carries, sample.features, made)
    _check_inputs_kept(found, model, sample, carries)
    _check_silence(found, model, carries, sample.features, made)
    _check_unseen(found, model, carries, sample.features, made, unseen)
    again = load(dump(generation), generation.id)
    found.expect(again.id == generation.id, "written and read back it has another id")
    found.expect(
        _same(again.model.predict(carries, sample.features), made, 0.0),
        "written and read back it predicts something else",
    )
    return found.failures


def _check_shapes(found: _Found, model: ValueModel, features: Floats, made: Prediction) -> None:
    users, knots = features.shape[:2]
    horizons = len(model.horizons_s)
    found.expect(
        horizons > 0 and list(model.horizons_s) == sorted(set(model.horizons_s)),
        "horizons are not ascending",
    )
    shapes = {
        "expected": (users, knots, horizons),
        "p_active": (users, knots, horizons),
        "p50": (users, horizons),
        "p90": (users, horizons),
        "if_active": (users, horizons, 3),
    }
    for name, shape in shapes.items():
        got: Floats = getattr(made, name)
        found.expect(got.shape == shape, f"{name} has shape {got.shape}, not {shape}")
        found.expect(got.dtype == np.float32, f"{name} is {got.dtype}, not float32")


def _check_order(found: _Found, made: Prediction, where: str) -> None:
    for field in fields(made):
        values: Floats = getattr(made, field.name)
        found.expect(np.isfinite(values).all(), f"{field.name} is not finite{where}")
        found.expect((values >= 0).all(), f"{field.name} is negative{where}")
    for name, values in (
        ("expected", made.expected),
        ("p_active", made.p_active),
        ("p50", made.p50),
        ("p90", made.p90),
    ):
        # float32 sums may fall by a rounding step
        steps = np.diff(values, axis=-1)
        slack = 1e-6 * np.abs(values[..., 1:])
        found.expect((steps >= -slack).all(), f"a longer horizon has less {name}{where}")
    found.expect((made.p_active <= 1).all(), f"p_active is above 1{where}")
    found.expect((made.p50 <= made.p90).all(), f"p50 is above p90{where}")
    found.expect((np.diff(made.if_active, axis=-1) >= 0).all(), f"if_active is unordered{where}")


def _absurd(features: Floats) -> Iterator[tuple[str, Floats]]:
    """Input that no training set holds and that some deployment will bring.

    Features are logarithms of counts, days and money: 25 stands for 72 billion.
    """
    yield "a user of whom nothing is known", np.zeros_like(features)
    yield "a spend of billions", np.full_like(features, 25)
    yield "a net refund of billions", np.full_like(features, -25)
    one = np.zeros_like(features)
    one[..., 0::7] = 25
    yield "single features of billions", one


def _check_steps(found: _Found, model: ValueModel, sample: Sample, carries: Floats) -> None:
    """Event by event, as they arrive, is the same as a batch of them."""
    stepwise = _zeros(model, len(sample.features))
    for row, token in zip(sample.rows, sample.tokens, strict=True):
        stepwise = model.advance(stepwise, np.array([row], np.int32), token[None])
    found.expect(_close(stepwise, carries), "step by step gives another carry than all at once")
    shuffled = np.argsort(sample.rows, kind="stable")
    found.expect(
        _close(
            model.advance(
                _zeros(model, len(carries)), sample.rows[shuffled], sample.tokens[shuffled]
            ),
            carries,
        ),
        "interleaving of users changes a carry",
    )
    nothing = model.advance(carries, sample.rows[:0], sample.tokens[:0])
    found.expect(np.array_equal(nothing, carries), "no step changes a carry")


def _check_batches(
    found: _Found, model: ValueModel, carries: Floats, features: Floats, made: Prediction
) -> None:
    users = min(len(features), 64)
    for size in BATCHES:
        # a batch of `size` rows, of which the first are ours
        for start in range(0, users, size):
            rows = np.arange(start, start + size) % len(features)
            part = model.predict(carries[rows], features[rows])
            ours = slice(0, min(size, users - start))
            found.expect(
                _same(_rows(part, ours), _rows(made, rows[ours]), CLOSE),
                f"a batch of {size} rows gives another value",
            )
    empty = model.predict(carries[:0], features[:0])
    found.expect(len(empty.expected) == 0, "a batch of no rows gives rows")


def _check_inputs_kept(found: _Found, model: ValueModel, sample: Sample, carries: Floats) -> None:
    inputs = (carries, sample.features, sample.tokens, sample.rows)
    before = [x.copy() for x in inputs]
    advanced = model.advance(carries, sample.rows, sample.tokens)
    if advanced.size:
        found.expect(not np.shares_memory(advanced, carries), "advance returns its input")
    model.predict(carries, sample.features)
    found.expect(
        all(np.array_equal(a, b) for a, b in zip(inputs, before, strict=True)),
        "the input is changed",
    )


def _check_silence(
    found: _Found, model: ValueModel, carries: Floats, features: Floats, made: Prediction
) -> None:
    now = model.predict(carries, np.ascontiguousarray(features[:, :1]))
    same = _close(now.expected[:, 0], made.expected[:, 0])
    same &= _close(now.p_active[:, 0], made.p_active[:, 0])
    same &= _close(now.p50, made.p50)
    same &= _close(now.p90, made.p90)
    found.expect(same, "the first knot of silence is not the value now")
    for knot in range(1, features.shape[1]):
        then = model.predict(carries, np.ascontiguousarray(features[:, knot : knot + 1]))
        found.expect(
            _close(then.expected[:, 0], made.expected[:, knot]),
            f"knot {knot} of silence is not the value encoded then",
        )


def _check_unseen(
    found: _Found,
    model: ValueModel,
    carries: Floats,
    features: Floats,
    made: Prediction,
    unseen: npt.NDArray[np.intp],
) -> None:
    if not len(unseen):
        return
    moved = features.copy()
    moved[..., unseen] = moved[..., unseen] * 3 + 5
    found.expect(
        _same(model.predict(carries, moved), made, 0.0),
        "a feature that training never saw vary moves a value",
    )


def untrained(generation: Generation, names: Sequence[str]) -> npt.NDArray[np.intp]:
    """Columns of `names` (FEATURES in order) that the generation was not trained on."""
    trained = set(generation.manifest.trained_features)
    return np.flatnonzero([name not in trained for name in names])


def _zeros(model: ValueModel, users: int) -> Floats:
    return np.zeros((users, model.carry_size), np.float32)


def _close(a: Floats, b: Floats) -> bool:
    return bool(a.shape == b.shape and (np.abs(a - b) <= CLOSE * (1 + np.abs(b))).all())


def _rows(made: Prediction, rows: slice | npt.NDArray[np.intp]) -> list[Floats]:
    return [getattr(made, field.name)[rows] for field in fields(made)]


def _same(a: Prediction | list[Floats], b: Prediction | list[Floats], tolerance: float) -> bool:
    left = _rows(a, slice(None)) if isinstance(a, Prediction) else a
    right = _rows(b, slice(None)) if isinstance(b, Prediction) else b
    return all(
        x.shape == y.shape and bool((np.abs(x - y) <= tolerance * (1 + np.abs(y))).all())
        for x, y in zip(left, right, strict=True)
    )
