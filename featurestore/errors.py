"""What can go wrong below the fold, in three kinds of caller's answer.

FeatureStoreError                 root: `except FeatureStoreError` catches all of this package
├── StoreUnavailable              Redis did not answer, or answered "try later": back off and
│                                 claim again; the outcome of a commit is then unknown
├── StoreError                    an operator must act; the message says what to do
│   ├── StoreAuthError            wrong password, or the account may not run what is needed
│   ├── StoreVersionError         server or function library is too old, or of a later schema
│   ├── StoreMismatch             the store was folded with other settings: names the setting
│   ├── StoreHalfDone             a drop or wipe was broken off: run the same command again
│   └── StoreLost                 a store that had data has none: says which recovery to run
├── StateFormatError              bytes are not a state, or are of an unknown version
└── UnknownPartitionerError       a partitioner's name that nobody implements (ValueError too)

Bad events never raise: they are values (streams.deadletter.Rejected).
"""

from __future__ import annotations


class FeatureStoreError(Exception):
    """Root of this package's exceptions."""


class StoreUnavailable(FeatureStoreError):
    """The store did not answer in time or asks to try later: back off, then claim again."""


class StoreError(FeatureStoreError):
    """Waiting will not help: an operator must act, and the message says how."""


class StoreAuthError(StoreError):
    """The store refuses our name or password, or the account lacks a permission."""


class StoreVersionError(StoreError):
    """The server, the function library or the schema has a version that we cannot work with."""


class StoreMismatch(StoreError):
    """The store's fingerprint differs from the settings'; the message names the setting."""


class StoreLost(StoreError):
    """Something was published, yet the store holds nothing: the message says what to run."""


class StoreHalfDone(StoreError):
    """A store was dropped or wiped halfway; the message names the command that finishes it."""


class StateFormatError(FeatureStoreError):
    """Bytes that are no state of a known version; the user's state must be rebuilt."""


class UnknownPartitionerError(FeatureStoreError, ValueError):
    """No partitioner has this name."""
