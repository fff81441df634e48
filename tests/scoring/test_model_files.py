"""Somebody else writes where generations are kept: what a worker then loads and reads."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pytest

from scoring.errors import GenerationError, ScoringError
from scoring.generation import MANIFEST, dump
from scoring.registry import Registry
from tests.scoring.tiny import tiny

ROOT = Path(__file__).resolve().parents[2]


async def _published(folder: Path) -> tuple[Registry, str, Path]:
    registry, made = Registry.at(str(folder)), tiny()
    await registry.publish(made)
    return registry, made.id, folder / "generations" / made.id


async def test_a_manifest_changed_to_fit_a_changed_file_is_refused(tmp_path: Path) -> None:
    registry, name, place = await _published(tmp_path)
    evil = b"another graph"
    (place / "model.onnx").write_bytes(evil)
    manifest = json.loads((place / MANIFEST).read_bytes())
    manifest["sha256"]["model.onnx"] = hashlib.sha256(evil).hexdigest()
    (place / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(GenerationError, match="changed after it was published"):
        await registry.get(name)


@pytest.mark.parametrize(
    "file", ["../../secret.json", "/etc/passwd", "a/../../secret.json", "x.pkl"]
)
async def test_a_manifest_that_names_a_file_elsewhere_reads_nothing(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, name, place = await _published(tmp_path)
    (tmp_path / "secret.json").write_text('"hunter2"')
    manifest = json.loads((place / MANIFEST).read_bytes())
    manifest["sha256"] = {file: hashlib.sha256(b'"hunter2"').hexdigest()}
    (place / MANIFEST).write_text(json.dumps(manifest))
    asked: list[str] = []
    blobs = registry._blobs
    read = blobs.blob

    async def listening(key: str) -> bytes | None:
        asked.append(key)
        return await read(key)

    monkeypatch.setattr(blobs, "blob", listening)
    with pytest.raises(GenerationError, match="not a file name") as caught:
        await registry.get(name)
    assert {key.rpartition("/")[2] for key in asked} == {MANIFEST}
    assert "hunter2" not in str(caught.value)


async def test_a_link_out_of_the_folder_is_refused_and_never_written_through(
    tmp_path: Path,
) -> None:
    registry, name, place = await _published(tmp_path / "models")
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    (place / "model.onnx").unlink()
    (place / "model.onnx").symlink_to(secret)
    with pytest.raises(GenerationError, match="SHA-256") as caught:
        await registry.get(name)
    assert "hunter2" not in str(caught.value)
    await registry.publish(tiny())
    assert secret.read_text() == "hunter2"
    assert dump(await registry.get(name)) == dump(tiny())


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"\xff", b'{"family": 1}'])
async def test_a_manifest_that_is_none_is_named_without_a_traceback(
    tmp_path: Path, raw: bytes
) -> None:
    registry, name, place = await _published(tmp_path)
    (place / MANIFEST).write_bytes(raw)
    with pytest.raises(ScoringError, match=r"manifest\.json"):
        await registry.get(name)
    (listed,) = await registry.ls()
    assert (listed.id, listed.manifest) == (name, None)
    assert "manifest.json" in listed.damaged


def test_nothing_of_ours_unpickles() -> None:
    """Neither by name nor through numpy or torch, which unpickle when asked to."""
    found = []
    for package in ("featurestore", "scoring", "streams", "livevalue"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                if {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"} & set(names):
                    found.append(f"{path}: import {names}")
                if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                    refuses = isinstance(node.value, ast.Constant) and node.value.value is False
                    found += [] if refuses else [f"{path}: allow_pickle"]
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    found.append(f"{path}: torch.load")
    assert not found
