"""A generation: model, calibrator and feature set, published as one under its content hash.

On disk and in the registry it is a few flat files: `manifest.json` beside what the family needs
(`head.onnx`, `weights.safetensors`, ...). The manifest holds the SHA-256 of every other file, and
the id is the SHA-256 of the manifest, so that one id names exactly these bytes. No pickle; file
names cannot leave their folder; nothing is loaded before its hash is checked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featurestore.vector import TOKENS
from scoring.errors import GenerationError, UnknownFamily
from scoring.inputs import KNOWN
from scoring.interface import ValueModel
from scoring.zoo import FAMILIES

if TYPE_CHECKING:
    from scoring.settings import ModelSettings

MANIFEST = "manifest.json"
SAFE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\.(onnx|safetensors|json)")
ID = re.compile(r"[0-9a-f]{64}")


class Bins(BaseModel):
    """How one column is spread: B bins between B - 1 rising edges, the upper edge in the bin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    edges: tuple[float, ...]
    shares: tuple[float, ...]


class Reference(BaseModel):
    """The population that a generation was trained on last, for scoring.retraining.drift."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    as_of_ms: int = Field(description="newest cut-off of the training rows")
    seen_within_s: int = Field(description="users with an event so recent are compared")
    users: int
    columns: dict[str, Bins] = Field(
        description="of what is read, and of predictions as d7.expected"
    )


class Manifest(BaseModel):
    """What a generation is, in words and numbers; the same log and seed give the same one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    family: str
    horizons_s: tuple[int, ...] = Field(description="ascending, seconds")
    features: tuple[str, ...] = Field((), description="feature columns the model reads, in order")
    tokens: tuple[str, ...] = Field((), description="token columns, in order; empty: no carry")
    trained_features: tuple[str, ...] = Field(
        (), description="columns that varied in training; the others are encoded as 0"
    )
    trained_until_ms: int | None = Field(None, description="log clock of the training log")
    log_start_ms: int | None = Field(None, description="first event of the training log")
    seen_types: tuple[str, ...] = Field((), description="event types in the training log")
    unit: str = Field("", description="currency or unit that values are in")
    params: dict[str, Any] = Field({}, description="the family's own numbers")
    calibration: dict[str, Any] = Field({}, description="arrays of scoring.calibration; {} = none")
    metrics: dict[str, Any] = Field({}, description="on validation cut-offs")
    sha256: dict[str, str] = Field({}, description="of every other file")
    reference: Reference | None = Field(None, description="what drift is measured against")
    recipe: dict[str, Any] = Field({}, description="how to make it anew: scoring.training.recipes")

    def encode(self) -> bytes:
        """Canonical bytes, fields in the order of this class.

        Without a reference or a recipe that field is not written: the id of the prior stays what
        it was before there were any.
        """
        absent = {name for name in ("reference", "recipe") if not getattr(self, name)}
        return self.model_dump_json(exclude=absent or None).encode()


@dataclass(frozen=True, slots=True)
class Generation:
    """A loaded generation, ready to serve."""

    id: str
    manifest: Manifest
    model: ValueModel
    files: Mapping[str, bytes]

    @property
    def short(self) -> str:
        """What people and documents see."""
        return self.id[:12]


def build(manifest: Manifest, files: Mapping[str, bytes]) -> Generation:
    """Name the files in the manifest, hash it, and load the result as a worker would."""
    manifest = manifest.model_copy(
        update={"sha256": {safe_name(n): _sha(files[n]) for n in sorted(files)}}
    )
    return load({MANIFEST: manifest.encode(), **files})


def with_unit(made: Generation, unit: str) -> Generation:
    """The same generation for values of this unit."""
    files = {name: made.files[name] for name in made.manifest.sha256}
    return build(made.manifest.model_copy(update={"unit": unit}), files)


def unservable(
    manifest: Manifest, horizons_s: Sequence[int], unit: str, readable: frozenset[str] = KNOWN
) -> str:
    """Why a generation cannot serve a deployment of this version; empty where it can.

    `readable`: names of the columns that the deployment makes (scoring.inputs).
    """
    if manifest.horizons_s != tuple(horizons_s):
        days = ", ".join(str(s // 86_400) for s in manifest.horizons_s)
        return f"it predicts {days} days, other horizons than LIVEVALUE_MODEL__HORIZONS_DAYS"
    unknown = set(manifest.features) - KNOWN
    if unknown or (manifest.tokens or TOKENS) != TOKENS:
        return "it reads another feature set than this version encodes"
    if not readable.issuperset(manifest.features):
        return "it reads edges or interests, which LIVEVALUE_FEATURES__SOCIAL or __INTERESTS fold"
    if manifest.unit and unit and manifest.unit != unit:
        return f"it was trained on values in {manifest.unit}, the deployment's unit is {unit}"
    return ""


def dump(generation: Generation) -> dict[str, bytes]:
    """File name -> bytes, manifest included."""
    return dict(generation.files)


def load(files: Mapping[str, bytes], expected_id: str | None = None) -> Generation:
    """Check names and hashes, then load the model by its family's name.

    `expected_id` is what the registry was asked for: other bytes under that name are refused.
    """
    if MANIFEST not in files:
        raise GenerationError("no manifest.json among the generation's files: publish it again")
    raw = files[MANIFEST]
    found = _sha(raw)
    if expected_id is not None and found != expected_id:
        raise GenerationError(
            f"generation {expected_id[:12]} has a manifest of another ({found[:12]}): it was"
            " changed after it was published; publish it again or promote another"
        )
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise GenerationError(
            f"manifest.json of generation {found[:12]} is not one of this version"
            f" ({error.error_count()} fields differ): upgrade, or promote an older generation"
        ) from error
    check_files(manifest, files)
    loader = FAMILIES.get(manifest.family)
    if loader is None:
        raise UnknownFamily(
            f"generation {found[:12]} is of family {manifest.family!r}; this version knows"
            f" {', '.join(sorted(FAMILIES))}: upgrade the worker, or promote another generation"
        )
    kept = {MANIFEST: raw, **{name: files[name] for name in manifest.sha256}}
    return Generation(found, manifest, loader(manifest, kept), kept)


def check_files(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Refuse a file that is missing, changed, or named so that it could leave its folder."""
    for name, sha in manifest.sha256.items():
        safe_name(name)
        if name not in files:
            raise GenerationError(f"{name} is missing from the generation: publish it again")
        if _sha(files[name]) != sha:
            raise GenerationError(f"{name} does not match its SHA-256: publish it again")


def safe_name(name: str) -> str:
    """`name` itself, if it is a plain file name that a generation may use.

    >>> safe_name("head.onnx")
    'head.onnx'
    """
    if name == MANIFEST or not SAFE_NAME.fullmatch(name):
        raise GenerationError(f"{name!r} is not a file name that a generation may have")
    return name


def safe_id(generation: str) -> str:
    """`generation` itself, if it is a full content hash."""
    if not ID.fullmatch(generation):
        raise GenerationError(f"{generation!r} is not a generation's id: 64 hexadecimal digits")
    return generation


def prior(settings: ModelSettings) -> Generation:
    """The generation of a fresh deployment: shrunken rate x shrunken order value, untrained."""
    from scoring.zoo.prior import generation

    return generation(settings)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
