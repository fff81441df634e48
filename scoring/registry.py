"""The registry: generations by content hash, the champion among them, and the way back.

Kept beside the stores (`FeatureStore.blob` / `put_blob`) or at an fsspec URL or folder, in flat
keys: `generations/<id>/<file>`, `generations/index.json` (ids in the order published) and
`generations/champion.json` (ids in the order promoted, newest last). A generation's manifest is
written after its files and the index after the manifest, so that what can be seen is whole.
Publishing the same bytes again changes nothing. Two publishers at the same moment may leave one
of them out of the index, not out of the registry: publish it again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

from pydantic import ValidationError

from featurestore.secrets import masked, shown
from scoring.errors import GenerationError, RegistryError, RegistryUnavailable
from scoring.generation import MANIFEST, Generation, Manifest, load, safe_id, safe_name

_SETTING = "LIVEVALUE_MODEL__REGISTRY"
_ROOT = "generations"
_INDEX = f"{_ROOT}/index.json"
_CHAMPION = f"{_ROOT}/champion.json"
KEPT = 50  # promotions remembered, far beyond any roll-back that makes sense


class Blobs(Protocol):
    """Where bytes are kept under a key: a FeatureStore is one."""

    async def blob(self, key: str) -> bytes | None: ...
    async def put_blob(self, key: str, data: bytes) -> None: ...


class FileBlobs:
    """Blobs in a folder or at any URL that fsspec knows (s3://, gs://, memory://, ...)."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: tuple[Any, str] | None = None  # file system and root

    async def blob(self, key: str) -> bytes | None:
        """The bytes under `key`, or None."""
        return await asyncio.to_thread(self._read, key)

    async def put_blob(self, key: str, data: bytes) -> None:
        """Write whole or not at all: a reader never sees half a file."""
        await asyncio.to_thread(self._write, key, data)

    def _open(self) -> tuple[Any, str]:
        """On first use, beside the event loop: some drivers connect for it."""
        if self._opened is None:
            import fsspec  # type: ignore[import-untyped]

            with self._driver("open"):
                try:
                    self._opened = fsspec.core.url_to_fs(self._url)
                except (ImportError, ValueError) as error:
                    raise RegistryError(
                        f"the registry {shown(self._url)!r} cannot be opened ({self._why(error)}): "
                        f"set {_SETTING} to `store`, a folder, or a URL whose fsspec driver is "
                        "installed"
                    ) from None
        return self._opened

    def _read(self, key: str) -> bytes | None:
        fs, root = self._open()
        with self._driver("read"):
            try:
                data: bytes = fs.cat_file(f"{root}/{key}")
            except FileNotFoundError:
                return None
            return data

    def _write(self, key: str, data: bytes) -> None:
        fs, root = self._open()
        path = f"{root}/{key}"
        aside = f"{path}.{uuid4().hex}"
        with self._driver("write to"):
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            fs.pipe_file(aside, data)
            fs.mv(aside, path)

    @contextmanager
    def _driver(self, what: str) -> Iterator[None]:
        """Translates what a driver raises, and drops it: a traceback would say its password."""
        try:
            yield
        except RegistryError:
            raise
        except (TypeError, AttributeError, KeyError, ImportError) as error:
            raise RegistryError(
                f"the driver of the registry {shown(self._url)} fails ({type(error).__name__}: "
                f"{self._why(error)}): correct {_SETTING} or its options"
            ) from None
        # Each has kinds of its own: a login that is refused is no OSError to ftplib or aiohttp.
        except Exception as error:  # noqa: BLE001
            raise RegistryUnavailable(
                f"cannot {what} the registry {shown(self._url)} ({self._why(error)}): check that"
                f" it is there and lets us in, or correct {_SETTING}"
            ) from None

    def _why(self, error: Exception) -> str:
        return masked(str(error), self._url) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Entry:
    """One generation as `livevalue generations ls` shows it."""

    id: str
    champion: bool
    manifest: Manifest | None  # None: it cannot be read
    damaged: str = ""  # and why


class Registry:
    """Publish, get, promote, roll back, list; raises RegistryError or GenerationError."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    @classmethod
    def at(cls, url: str) -> Registry:
        """A registry in a folder or at an fsspec URL."""
        return cls(FileBlobs(url))

    async def publish(self, generation: Generation) -> str:
        """Keep all files; -> id. Does not promote."""
        root = f"{_ROOT}/{safe_id(generation.id)}"
        for name in sorted(generation.manifest.sha256):
            await self._blobs.put_blob(f"{root}/{safe_name(name)}", generation.files[name])
        await self._blobs.put_blob(f"{root}/{MANIFEST}", generation.files[MANIFEST])
        ids = await self._ids(_INDEX)
        if generation.id not in ids:
            await self._put(_INDEX, [*ids, generation.id])
        return generation.id

    async def get(self, generation: str) -> Generation:
        """Load by id, or by a prefix of at least 8 digits; hashes are checked."""
        full = await self.resolve(generation)
        manifest = await self._manifest(full)
        root = f"{_ROOT}/{full}"
        files = {}
        for name in (MANIFEST, *manifest.sha256):
            if name != MANIFEST:
                safe_name(name)
            data = await self._blobs.blob(f"{root}/{name}")
            if data is None:
                raise GenerationError(f"{name} of generation {full[:12]} is missing: publish again")
            files[name] = data
        return load(files, expected_id=full)

    async def resolve(self, generation: str) -> str:
        """The full id that `generation`, an id or a prefix of one, names."""
        if len(generation) == 64:
            return safe_id(generation)
        found = [i for i in await self._ids(_INDEX) if i.startswith(generation)]
        if len(generation) < 8 or len(found) != 1:
            raise RegistryError(
                f"{generation!r} names {len(found)} generations: give at least 8 digits of an id"
                " that `livevalue generations ls` shows"
            )
        return found[0]

    async def champion(self) -> str | None:
        """Id of the generation to serve, None where none was ever promoted."""
        ids = await self._ids(_CHAMPION)
        return ids[-1] if ids else None

    async def promote(self, generation: str) -> str | None:
        """Make a published generation the champion; -> the one before. Again changes nothing."""
        full = await self.resolve(generation)
        await self._manifest(full)
        ids = await self._ids(_CHAMPION)
        if ids and ids[-1] == full:
            return ids[-2] if len(ids) > 1 else None
        await self._put(_CHAMPION, [*ids, full][-KEPT:])
        return ids[-1] if ids else None

    async def rollback(self) -> str:
        """Back to the champion before; -> its id."""
        ids = await self._ids(_CHAMPION)
        if len(ids) < 2:
            raise RegistryError("there is no earlier champion to go back to")
        await self._put(_CHAMPION, ids[:-1])
        return ids[-2]

    async def ls(self) -> list[Entry]:
        """All published generations, in the order published; a damaged one hides no other."""
        champion = await self.champion()
        return [await self._entry(i, i == champion) for i in await self._ids(_INDEX)]

    async def _entry(self, full: str, champion: bool) -> Entry:
        try:
            return Entry(full, champion, await self._manifest(full))
        except RegistryUnavailable:
            raise
        except (RegistryError, GenerationError) as error:
            return Entry(full, champion, None, str(error))

    async def _manifest(self, full: str) -> Manifest:
        raw = await self._blobs.blob(f"{_ROOT}/{full}/{MANIFEST}")
        if raw is None:
            raise RegistryError(
                f"the registry does not hold generation {full[:12]}: see `livevalue generations ls`"
            )
        try:
            return Manifest.model_validate_json(raw)
        except ValidationError as error:
            raise GenerationError(
                f"{MANIFEST} of generation {full[:12]} is not one of this version "
                f"({error.error_count()} fields differ): upgrade, or publish it again"
            ) from None

    async def _ids(self, key: str) -> list[str]:
        raw = await self._blobs.blob(key)
        if raw is None:
            return []
        try:
            read: Any = json.loads(raw)
        except ValueError as error:
            raise RegistryError(f"{key} in the registry is not JSON: restore it") from error
        if not isinstance(read, list):
            raise RegistryError(f"{key} in the registry is not a list of ids: restore it")
        return [safe_id(str(i)) for i in read]

    async def _put(self, key: str, ids: list[str]) -> None:
        await self._blobs.put_blob(key, json.dumps(ids).encode())
