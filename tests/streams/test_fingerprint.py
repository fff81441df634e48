"""A fingerprint is a hash; what is kept beside the stores names the settings behind it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from featurestore.backends.memory import Backing, MemoryStore
from featurestore.columns import EventBatch
from featurestore.errors import StoreMismatch
from featurestore.settings import FeatureSettings, StoreSettings, ValueSettings
from featurestore.store import Watermark
from scoring.generation import prior
from scoring.settings import ModelSettings
from streams.backfill import builder
from streams.fingerprint import Fingerprint
from streams.pipeline import Pipeline, Positions
from streams.settings import KafkaSettings, Settings
from streams.takeover import Takeover


def settings(**sections: Any) -> Settings:
    kafka = sections.pop("kafka", {"mixed": "events"})
    return Settings(kafka=KafkaSettings(partitions=1, **kafka), store=StoreSettings(), **sections)


def pipeline(store: MemoryStore, **sections: Any) -> Pipeline:
    ours = settings(**sections)
    return builder(store, ours, prior(ours.model))


async def begin(with_: Pipeline) -> Watermark:
    """A store that stands somewhere."""
    claim = await with_.store.claim(0)
    after = Positions((1,), ("",), "log", (False,))
    done = await with_.process(0, claim.token, claim.watermark, after, EventBatch.empty(), [])
    assert done.outcome == "OK"
    return done.watermark


async def refused(with_: Pipeline, mark: Watermark) -> str:
    with pytest.raises(StoreMismatch) as error:
        await with_.fingerprint.check(with_.store, mark)
    return str(error.value)


async def test_each_setting_that_differs_is_named_with_both_values_and_no_other() -> None:
    store = MemoryStore("main", Backing())
    mark = await begin(pipeline(store))
    other = pipeline(
        store,
        features=FeatureSettings(lateness=timedelta(hours=5)),
        value=ValueSettings(currency="EUR"),
        model=ModelSettings(silence_days=(0, 9)),
    )
    said = await refused(other, mark)
    assert 'LIVEVALUE_FEATURES__LATENESS ("P3D" in the store, "PT5H" in the settings)' in said
    assert 'LIVEVALUE_VALUE__CURRENCY ("GBP" in the store, "EUR" in the settings)' in said
    assert "LIVEVALUE_MODEL__SILENCE_DAYS ([0.0, 1.0" in said
    assert said.count("LIVEVALUE_") == 3
    await pipeline(store).fingerprint.check(store, mark)


async def test_switching_edges_on_needs_a_fold_from_the_log() -> None:
    store = MemoryStore("main", Backing())
    mark = await begin(pipeline(store))
    said = await refused(pipeline(store, features=FeatureSettings(social=True)), mark)
    assert "LIVEVALUE_FEATURES__SOCIAL (nothing in the store, true in the settings)" in said
    assert said.count("LIVEVALUE_") == 1


@pytest.mark.parametrize(
    ("kafka", "named"),
    [
        ({"mixed": "other"}, 'MIXED ("events" in the store, "other" in the settings)'),
        ({}, 'MIXED ("events" in the store, "" in the settings)'),
        ({"mixed": "events", "partitioner": "crc32"}, 'PARTITIONER ("murmur2" in the store'),
    ],
)
async def test_topics_and_their_partitioner_are_named_as_the_environment_calls_them(
    kafka: dict[str, Any], named: str
) -> None:
    store = MemoryStore("main", Backing())
    mark = await begin(pipeline(store))
    said = await refused(pipeline(store, kafka=kafka), mark)
    assert f"LIVEVALUE_KAFKA__{named}" in said
    assert said.count("LIVEVALUE_KAFKA__") == 1
    # Other topics may be another deployment's, which is at work on its Redis.
    assert ("LIVEVALUE_STORE__URL" in said) is named.startswith("MIXED")


async def test_where_nothing_is_kept_or_it_is_damaged_the_message_says_so() -> None:
    backing = Backing()
    store = MemoryStore("main", backing)
    mark = await begin(pipeline(store))
    other = pipeline(store, features=FeatureSettings(tail_cap=3))
    key = f"settings/{mark.fingerprint}"
    await store.put_blob(key, b"{}")
    assert f"lv:blob:{key} is damaged" in await refused(other, mark)
    del backing.content.blobs[key]
    assert f"lv:blob:{key} is missing" in await refused(other, mark)


async def test_a_store_of_other_settings_is_neither_folded_into_nor_taken_over() -> None:
    store = MemoryStore("main", Backing())
    mark = await begin(pipeline(store))
    features = FeatureSettings(tail_cap=3)
    other = pipeline(store, features=features)
    token = (await store.claim(0)).token
    after = Positions((2,), ("",), "log", (False,))
    with pytest.raises(StoreMismatch, match="LIVEVALUE_FEATURES__TAIL_CAP"):
        await other.process(0, token, mark, after, EventBatch.empty(), [])
    with pytest.raises(StoreMismatch, match="LIVEVALUE_FEATURES__TAIL_CAP"):
        await other.refresh(0, token, mark, [], None, "recover")

    async def find(name: str) -> Any:
        return prior(other.settings.model)

    with pytest.raises(StoreMismatch, match="LIVEVALUE_FEATURES__TAIL_CAP"):
        await Takeover.begin(store, other.settings, 0, find)
    assert (await store.load(0, [])).watermark == mark


def test_what_changes_no_fold_changes_no_fingerprint() -> None:
    first = Fingerprint(settings(), "g")
    assert Fingerprint(settings(kafka={"mixed": "events", "app": "b"}), "g").text == first.text
    days = ModelSettings.model_validate({"silence_days": list(ModelSettings().silence_days)})
    assert Fingerprint(settings(model=days), "g").text == first.text
    assert Fingerprint(settings(), "h").text != first.text
    # A store from before there was the setting goes on, as long as it is off.
    off = Fingerprint(settings(features=FeatureSettings(social=False)), "g")
    assert b"social" not in off.content
    on = Fingerprint(settings(features=FeatureSettings(social=True)), "g")
    assert off.text == first.text != on.text
    assert b"interests" not in off.content
    on = Fingerprint(settings(features=FeatureSettings(interests=True)), "g")
    assert on.text != first.text
