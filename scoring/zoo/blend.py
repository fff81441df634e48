"""The mean of several families: what all of them together can reach.

Each member is a generation of its own; the blend keeps their files beside each other and asks all
of them. Its carry is theirs end to end. Expected value and activity are means over the members,
and the value given activity is the lognormal of the same mean and variance (of the logarithm) as
their mixture, each by the activity that it says. Means of ordered things are ordered, so the blend
keeps every promise that its members keep. Members may read the fold's own features alone, or the
columns behind them, too (scoring.training.columns): each is given the first ones, as many as it
reads.

Cost: the sum of its members', of which trees and kernels are the most: several times the served
net. It can be served, and is meant as the ceiling that the served net is held to.
Source: Wolpert 1992, "Stacked generalization"; equal weights as in Clemen 1989, "Combining
forecasts". Shapes as in scoring.interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from scoring import interests, social
from scoring.errors import GenerationError
from scoring.generation import MANIFEST, Generation, Manifest, build
from scoring.generation import load as load_generation
from scoring.heads import Z90, Mixture, prediction
from scoring.inputs import FEATURE_NAMES
from scoring.interface import Floats, Prediction, ValueModel
from scoring.outliers import closest

MEMBER = "member.json"  # a member's manifest, which may not bear the name of the blend's own
_LEAST = np.float32(1e-30)


class Blend:
    """A trained generation: implements scoring.interface.ValueModel."""

    def __init__(
        self, manifest: Manifest, members: Sequence[ValueModel], widths: Sequence[int]
    ) -> None:
        self._members, self._widths = list(members), list(widths)
        self._ends = np.cumsum([m.carry_size for m in members])
        self.carry_size = int(self._ends[-1])
        self.horizons_s = manifest.horizons_s

    def _parts(self, carries: Floats) -> list[Floats]:
        return np.split(carries, self._ends[:-1], axis=1)

    def advance(self, carries: Floats, rows: npt.NDArray[np.int32], tokens: Floats) -> Floats:
        """Each member steps its own columns."""
        parts = zip(self._members, self._parts(carries), strict=True)
        return np.concatenate(
            [m.advance(np.ascontiguousarray(c), rows, tokens) for m, c in parts], axis=1
        )

    def predict(self, carries: Floats, features: Floats) -> Prediction:
        """`carries` (U, C), `features` (U, K, F) -> Prediction."""
        parts = zip(self._members, self._parts(carries), self._widths, strict=True)
        said = [m.predict(np.ascontiguousarray(c), features[:, :, :n]) for m, c, n in parts]
        weight = np.float32(1 / len(said))
        expected = np.sum([one.expected for one in said], axis=0) * weight
        p_active = np.sum([one.p_active for one in said], axis=0) * weight
        log_mean, log_sd = _together(said)
        return prediction(Mixture(expected, p_active, log_mean, log_sd))


def _together(said: Sequence[Prediction]) -> tuple[Floats, Floats]:
    """(U, H) mean and sd of the log value given activity, of the members' mixture."""
    low, middle, high = np.moveaxis(
        np.log(np.maximum([one.if_active for one in said], _LEAST)), -1, 0
    )
    share = np.maximum([one.p_active[:, 0] for one in said], _LEAST)
    share = share / share.sum(0)
    mean = (share * middle).sum(0)
    variance = share * (np.square((high - low) / np.float32(2 * Z90)) + np.square(middle - mean))
    return mean.astype(np.float32), np.sqrt(variance.sum(0)).astype(np.float32)


def generation(members: Sequence[Generation]) -> Generation:
    """Put members of the same horizons and features together."""
    from scoring.cost import parameters

    widest = max(members, key=lambda m: len(_names(m)))
    first, names = members[0].manifest, _names(widest)
    for other in members:
        if other.manifest.horizons_s != first.horizons_s or not _first_of(_names(other), names):
            raise GenerationError(
                f"{other.manifest.family} has other horizons or features than {first.family}: blend"
                " generations of one training"
            )
    reads = {name for m in members for name in m.manifest.trained_features}
    tokens = next((m.manifest.tokens for m in members if m.manifest.tokens), ())
    manifest = first.model_copy(
        update={
            "family": "blend",
            "tokens": tokens,
            "features": widest.manifest.features,
            "trained_features": tuple(name for name in names if name in reads),
            "params": {
                "members": [m.manifest.family for m in members],
                "parameters": sum(parameters(m) or 0 for m in members),
                **closest([m.manifest.params for m in members]),
            },
            "calibration": {},
            "metrics": {},
            "reference": None,
            "sha256": {},
        }
    )
    files = {n: f for i, m in enumerate(members) for n, f in _named(i, m).items()}
    # What columns are read by: the scorer looks for them here.
    files |= {n: widest.files[n] for n in (social.FILE, interests.FILE) if n in widest.files}
    return build(manifest, files)


def _names(made: Generation) -> tuple[str, ...]:
    return made.manifest.features or FEATURE_NAMES


def _first_of(names: tuple[str, ...], every: tuple[str, ...]) -> bool:
    return names == every[: len(names)]


def _named(number: int, member: Generation) -> dict[str, bytes]:
    """A member's files, its manifest among them, under names of its own."""
    return {
        f"m{number}-{MEMBER if name == MANIFEST else name}": data
        for name, data in member.files.items()
    }


def load(manifest: Manifest, files: Mapping[str, bytes]) -> Blend:
    """Found by scoring.zoo.FAMILIES."""
    members: list[Generation] = []
    for number in range(len(manifest.params.get("members", ()))):
        head = f"m{number}-"
        own = {n.removeprefix(head): data for n, data in files.items() if n.startswith(head)}
        if MEMBER not in own:
            raise GenerationError(f"the blend lacks its member {number}: publish it again")
        own[MANIFEST] = own.pop(MEMBER)
        members.append(load_generation(own))
    if not members:
        raise GenerationError("the blend has no members: publish it again")
    widths = [len(_names(member)) for member in members]
    return Blend(manifest, [member.model for member in members], widths)
