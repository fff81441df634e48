"""What a store's fold was made with: its fingerprint, and by which settings two of them differ.

A fingerprint is a hash and says nothing. So what it was made of is kept beside the stores, as the
blob `settings/<fingerprint>`, when a store is begun; a worker that finds another fingerprint than
its own can then name each setting that differs, as the environment calls it, with both values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from featurestore.errors import StoreMismatch
from featurestore.features import FEATURES, SOCIAL
from featurestore.store import FeatureStore, Watermark
from streams.settings import Settings

_WAYS = (
    "Set what the store has, or fold the log again with these settings: "
    "`livevalue recover rebuild --dry-run`"
)
_SINGLE = {
    "partitions": "LIVEVALUE_KAFKA__PARTITIONS",
    "partitioner": "LIVEVALUE_KAFKA__PARTITIONER",
    "horizons": "LIVEVALUE_MODEL__HORIZONS_DAYS",
    "silence": "LIVEVALUE_MODEL__SILENCE_DAYS",
    "table": "the feature table (of another version of livevalue)",
    "edges": "the columns of edges (of another version of livevalue)",
    "generation": "the generation",
}
_TOPICS = tuple(f"LIVEVALUE_KAFKA__{name}" for name in ("BROWSE", "PURCHASE", "INTERACTION"))
_ABSENT = object()


class Fingerprint:
    """Everything that changes a folded state or its value, of these settings and a generation."""

    def __init__(self, settings: Settings, generation: str) -> None:
        # A switch that is off is as if it had never been: stores from before it go on.
        off = {name for name in ("social", "interests") if not getattr(settings.features, name)}
        what = {
            "features": settings.features.model_dump(mode="json", exclude=off),
            "table": [f.name for f in FEATURES],
            "value": settings.value.model_dump(mode="json"),
            "sources": settings.kafka.sources,
            "partitions": settings.kafka.partitions,
            "partitioner": settings.kafka.partitioner,
            "horizons": settings.model.horizons_days,
            # The last document's curve is kept with the state. As floats: the default is written
            # in integers, the same list from the environment is read as floats.
            "silence": [float(days) for days in settings.model.silence_days],
            "generation": generation,
        }
        if "social" not in off:
            what["edges"] = [f.name for f in SOCIAL]
        self.content = json.dumps(what, sort_keys=True).encode()
        self.text = _hash(self.content)  # as it stands in the watermark

    async def keep(self, store: FeatureStore) -> None:
        """Keep what this was made of beside the stores; done before the first commit."""
        if await store.blob(_key(self.text)) != self.content:
            await store.put_blob(_key(self.text), self.content)

    async def check(self, store: FeatureStore, mark: Watermark | None) -> None:
        """Raise StoreMismatch, naming what differs, where the store was folded with another."""
        if mark is None or mark.fingerprint == self.text:
            return
        kept, whose = await store.blob(_key(mark.fingerprint)), ""
        if kept is None or _hash(kept) != mark.fingerprint:
            said = (
                f"which of them is not known, since lv:blob:{_key(mark.fingerprint)} is "
                f"{'missing' if kept is None else 'damaged'}"
            )
        else:
            there, here = json.loads(kept), json.loads(self.content)
            said = "; ".join(differences(there, here))
            if there["sources"] != here["sources"]:
                whose = " Is it the Redis of this deployment (LIVEVALUE_STORE__URL)?"
        raise StoreMismatch(
            f"store {store.name!r} was folded with other settings than these: {said}."
            f"{whose} {_WAYS}"
        )


def _key(text: str) -> str:
    return f"settings/{text}"


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def differences(store: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """One line for each setting that differs, by its name in the environment.

    >>> differences({"features": {"lateness": "P3D"}}, {"features": {"lateness": "P1D"}})
    ['LIVEVALUE_FEATURES__LATENESS ("P3D" in the store, "P1D" in the settings)']
    """
    there, here = _named(store), _named(settings)
    if len(store.get("sources", ())) != len(settings.get("sources", ())):
        # One mixed topic against three: that alone is the difference.
        there, here = ({k: v for k, v in x.items() if k not in _TOPICS} for x in (there, here))
    return [
        f"{name} ({_said(there, name)} in the store, {_said(here, name)} in the settings)"
        for name in dict.fromkeys([*there, *here])
        if there.get(name, _ABSENT) != here.get(name, _ABSENT)
    ]


def _named(what: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a fingerprint by name in the environment."""
    named: dict[str, Any] = {}
    for section, value in what.items():
        if section == "sources":
            named["LIVEVALUE_KAFKA__MIXED"] = value[0] if len(value) == 1 else ""
            if len(value) > 1:
                named |= zip(_TOPICS, value, strict=True)
        elif section in _SINGLE:
            named[_SINGLE[section]] = value
        else:
            named |= {f"LIVEVALUE_{section}__{key}".upper(): x for key, x in value.items()}
    return named


def _said(named: Mapping[str, Any], name: str) -> str:
    return json.dumps(named[name]) if name in named else "nothing"
