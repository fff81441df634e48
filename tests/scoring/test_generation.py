"""Generations: content-addressed, checked, never leaving their folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from featurestore.backends.memory import MemoryStore
from scoring.errors import GenerationError, RegistryError, UnknownFamily
from scoring.generation import MANIFEST, Generation, Manifest, build, dump, load
from scoring.registry import Registry
from tests.scoring.tiny import tiny


def test_one_id_names_exactly_these_bytes() -> None:
    made = tiny()
    assert tiny().id == made.id
    assert tiny(bias=0.5).id != made.id
    again = load(dump(made), expected_id=made.id)
    assert again.id == made.id
    assert again.manifest == made.manifest


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors"])
def test_a_changed_or_missing_file_is_refused(name: str) -> None:
    files = dump(tiny())
    changed = {**files, name: files[name][:-1] + bytes([files[name][-1] ^ 1])}
    with pytest.raises(GenerationError, match="SHA-256"):
        load(changed)
    del files[name]
    with pytest.raises(GenerationError, match="missing"):
        load(files)


def test_other_bytes_under_a_known_id_are_refused() -> None:
    with pytest.raises(GenerationError, match="changed after it was published"):
        load(dump(tiny(bias=0.5)), expected_id=tiny().id)


@pytest.mark.parametrize(
    "name", ["../evil.onnx", "/etc/evil.json", "a/b.onnx", "..", "model.pkl", "manifest.json", ""]
)
def test_a_file_name_cannot_leave_its_folder(name: str) -> None:
    made = tiny()
    with pytest.raises(GenerationError, match="file name"):
        build(made.manifest, {**_files(made), name: b"x"})


def test_a_file_that_the_manifest_does_not_name_is_not_kept() -> None:
    files = {**dump(tiny()), "extra.json": b"{}"}
    assert "extra.json" not in load(files).files


def test_a_family_of_a_newer_version_says_to_upgrade() -> None:
    manifest = Manifest(family="from-the-future", horizons_s=(604800,))
    with pytest.raises(UnknownFamily, match="upgrade"):
        load({MANIFEST: manifest.encode()})


def test_a_manifest_with_unknown_fields_says_to_upgrade() -> None:
    raw = json.loads(dump(tiny())[MANIFEST])
    with pytest.raises(GenerationError, match="upgrade"):
        load({MANIFEST: json.dumps({**raw, "format": 2}).encode()})


def test_a_graph_that_is_no_graph_is_a_generation_error() -> None:
    made = tiny()
    files = {**_files(made), "model.onnx": b"not a graph"}
    loaded = build(made.manifest, files)
    with pytest.raises(GenerationError, match="publish it again"):
        loaded.model.predict(np.zeros((1, 8), np.float32), np.zeros((1, 1, 5), np.float32))
    with pytest.raises(GenerationError, match="publish it again"):
        build(made.manifest, {**_files(made), "weights.safetensors": b"\0" * 9})
    with pytest.raises(GenerationError, match="publish it again"):
        build(made.manifest, {**_files(made), "weights.safetensors": save({"w9": np.zeros(1)})})


def _files(made: Generation) -> dict[str, bytes]:
    return {name: data for name, data in dump(made).items() if name != MANIFEST}


async def test_the_registry_publishes_promotes_and_goes_back(tmp_path: Path) -> None:
    registry = Registry.at(str(tmp_path))
    assert await registry.champion() is None
    first, second = tiny(), tiny(bias=0.5)
    for made in (first, second, first):  # again: nothing changes
        assert await registry.publish(made) == made.id
    assert [entry.id for entry in await registry.ls()] == [first.id, second.id]
    assert await registry.promote(first.id) is None
    assert await registry.promote(second.id[:12]) == first.id
    assert await registry.promote(second.id) == first.id  # again: nothing changes
    assert (await registry.get(second.short)).id == second.id
    assert [entry.champion for entry in await registry.ls()] == [False, True]
    assert await registry.rollback() == first.id
    assert await registry.champion() == first.id
    with pytest.raises(RegistryError, match="no earlier champion"):
        await registry.rollback()


async def test_a_registry_at_a_url_serves_what_another_process_published() -> None:
    made = tiny()
    await Registry.at("memory://shared-models").publish(made)
    got = await Registry.at("memory://shared-models").get(made.id)
    assert dump(got) == dump(made)


async def test_a_store_is_a_registry_too() -> None:
    registry, made = Registry(MemoryStore()), tiny()
    await registry.publish(made)
    await registry.promote(made.id)
    assert await registry.champion() == made.id
    assert dump(await registry.get(made.short)) == dump(made)


async def test_what_is_not_published_cannot_be_promoted(tmp_path: Path) -> None:
    registry = Registry.at(str(tmp_path))
    for unknown in ("0" * 64, "abcdef12"):
        with pytest.raises(RegistryError, match="generation"):
            await registry.promote(unknown)
    with pytest.raises(GenerationError, match="hexadecimal"):
        await registry.get("../" + "0" * 61)


async def test_bytes_changed_in_the_registry_are_refused(tmp_path: Path) -> None:
    registry, made = Registry.at(str(tmp_path)), tiny()
    await registry.publish(made)
    blobs = registry._blobs
    await blobs.put_blob(f"generations/{made.id}/model.onnx", b"something else")
    with pytest.raises(GenerationError, match="SHA-256"):
        await registry.get(made.id)
