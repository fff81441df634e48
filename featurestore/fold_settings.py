"""Settings of the fold as arrays: milliseconds and counts, one place where days become them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from featurestore.settings import FeatureSettings

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS


def milliseconds(span: timedelta) -> int:
    """Whole milliseconds of a time span.

    >>> milliseconds(timedelta(seconds=1.5))
    1500
    """
    return span // timedelta(milliseconds=1)


def half_lives_ms(settings: FeatureSettings) -> tuple[int, int, int]:
    """The three half-lives in whole milliseconds."""
    short, middle, long = (max(1, round(days * DAY_MS)) for days in settings.half_lives_days)
    return short, middle, long


@dataclass(frozen=True, slots=True)
class FoldSettings:
    """What the fold needs of the settings. Shapes: S sources."""

    lateness_ms: npt.NDArray[np.int64]  # (S,) allowed lateness
    skew_ms: int
    half_lives_ms: tuple[int, int, int]
    session_gap_ms: int
    tail_cap: int  # per user and source, as the next two
    ids_cap: int
    ring_cap: int
    cut_ms: int | None  # events before it are in the store's base already

    @classmethod
    def of(
        cls, features: FeatureSettings, sources: Sequence[str], cut_ms: int | None = None
    ) -> FoldSettings:
        """Settings for these source topics.

        >>> FoldSettings.of(FeatureSettings(), ["a"]).lateness_ms.tolist()
        [259200000]
        """
        spans = [features.lateness_by_topic.get(name, features.lateness) for name in sources]
        return cls(
            lateness_ms=np.array([milliseconds(span) for span in spans], np.int64),
            skew_ms=milliseconds(features.skew),
            half_lives_ms=half_lives_ms(features),
            session_gap_ms=milliseconds(features.session_gap),
            tail_cap=features.tail_cap,
            ids_cap=features.ids_cap,
            ring_cap=features.ring_cap,
            cut_ms=cut_ms,
        )
