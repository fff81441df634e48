"""What can go wrong between log and store, by what the caller does next.

StreamsError                      root: `except StreamsError` catches all of this package
├── LogUnavailable                broker unreachable or busy: back off and claim again
├── LogError                      an operator must act; the message says what to do
│   ├── LogAuthError              the broker refuses name, password or permission
│   ├── TopicError                a topic is missing, compacted, or has another partition count
│   ├── LogReset                  the topic was recreated, or its log no longer holds the watermark
│   ├── LogTruncated              records before the watermark are gone and are needed
│   └── Misrouted                 most records lie in another partition than the setting says
├── LogFileError                  an event log in a file cannot be read: names the file and why
├── Fenced                        another worker owns the partition: forget it, claim if still ours
├── Stale                         the store is not where we thought: forget memory, claim again
├── PublishError                  the transactional producer failed: throw it away, claim again
├── WrongSetting                  a setting is wrong: names it, or the file, and what to write
└── AddressError                  the metrics cannot be served there: names the settings

Bad records never raise: they are values (streams.deadletter.Rejected).
"""

from __future__ import annotations


class StreamsError(Exception):
    """Root of this package's exceptions."""


class LogUnavailable(StreamsError):
    """The broker does not answer: back off, then claim again."""


class LogError(StreamsError):
    """Waiting will not help: an operator must act, and the message says how."""


class LogAuthError(LogError):
    """The broker refuses our name, password or permission."""


class TopicError(LogError):
    """A topic is missing, compacted, or partitioned otherwise than its siblings."""


class LogReset(LogError):
    """The log is not the one that the store was folded from."""


class LogTruncated(LogError):
    """Records that are still needed have been deleted by retention."""


class Misrouted(LogError):
    """Most records were keyed by another partitioner: the message names the setting."""


class WrongSetting(StreamsError):
    """A setting cannot be read; the message names it, or the file, and what to write."""


class LogFileError(StreamsError):
    """An event log in a file cannot be read; the message names file, place and reason."""


class Fenced(StreamsError):
    """Another writer claimed the partition after us."""


class Stale(StreamsError):
    """Positions or seq are not what the writer expected."""


class PublishError(StreamsError):
    """A transaction failed: throw the producer away and claim again."""


class AddressError(StreamsError):
    """The address for metrics is taken, or not of this machine."""
