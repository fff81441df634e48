"""What can go wrong in scoring: one root, so that a caller can catch the package's errors.

    ScoringError
    ├── GenerationError     the files of a generation are not what they claim to be
    │   └── UnknownFamily   made by a newer version: upgrade, or promote an older generation
    ├── RegistryError       the registry cannot be used, or lacks the generation asked for
    │   └── RegistryUnavailable   its disk, bucket or server does not answer, which may pass
    ├── TooLittleData       no mature labels yet: the message says from which date there will be
    └── CarryError          a packed state that this version cannot read: build the store anew

Messages say what the operator does next.
"""

from __future__ import annotations


class ScoringError(Exception):
    """Root of the package's errors."""


class GenerationError(ScoringError):
    """Files of a generation are missing, changed or unsafe: publish it again."""


class UnknownFamily(GenerationError):
    """The manifest names a model family that this version does not know."""


class RegistryError(ScoringError):
    """The registry cannot be used, or does not hold what was asked for."""


class RegistryUnavailable(RegistryError):
    """The registry's disk, bucket or server does not answer: that may pass."""


class TooLittleData(ScoringError):
    """Training needs labels that the log does not hold yet."""


class CarryError(ScoringError):
    """A packed carry that this version or generation cannot read."""
