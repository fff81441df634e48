"""Generated contracts: JSON Schema of events and values, and test vectors of the partitioners.

`python -m livevalue.contracts` writes them to contracts/, with --check it only compares and
exits 1 if they drifted from the models. They are what other languages build on: a change here is
a change of the promise, and belongs in the changelog.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from featurestore.events import Browse, Interaction, Purchase
from featurestore.partitioner import NAMES, partition
from scoring.values import ValueUpdate

FOLDER = Path(__file__).resolve().parent.parent / "contracts"
PARTITIONS = (1, 3, 8, 12)

KEYS = (
    # every length around murmur2's words of four bytes
    *("u" * length for length in range(1, 10)),
    *(f"user-{number}" for number in range(1, 13)),
    *("ada", "ADA", "17850", "12345.0", "0", "-1", "a@example.com", "a b", " a", "a ", "a\tb"),
    *(
        "é",
        "e\u0301",
        "ß",
        "Ωmega",
        "北京",
        "مستخدم",
        "अदा",
        "😀",
        "👩‍👩‍👧",
        "\u00a0",
        "\ufeff",
        "\u0000",
    ),
    *("00000000-0000-0000-0000-000000000000", "3f2504e0-4f89-11d3-9a0c-0305e82c3301"),
    *("x" * 64, "x" * 65, "长" * 86, "k" * 256),
)


def documents() -> dict[str, Any]:
    """Every generated file by name."""
    # No discriminator: `type` may be left out where the topic implies it.
    event: TypeAdapter[Any] = TypeAdapter(Browse | Purchase | Interaction)
    return {
        "event.schema.json": _schema(event.json_schema(), "Livevalue event", "key = user_id"),
        **{
            f"{model.__name__.lower()}.schema.json": _schema(
                model.model_json_schema(), f"Livevalue {model.__name__.lower()} event", ""
            )
            for model in (Browse, Purchase, Interaction)
        },
        "value.schema.json": _schema(
            ValueUpdate.model_json_schema(mode="serialization"),
            "Livevalue value",
            "Value of a record of `scores`, and of lv:{p}:v:<user> in Redis. Null: an erased user.",
        ),
        "partitioner.json": {
            "description": "Partition of a user's key (UTF-8) by number of partitions; murmur2 as "
            "Kafka's Java client, crc32 as librdkafka, fnv1a as sarama's NewHashPartitioner.",
            "partitions": PARTITIONS,
            "vectors": [
                {
                    "key": key,
                    "utf8": key.encode().hex(),
                    **{name: [partition(key, n, name) for n in PARTITIONS] for name in NAMES},
                }
                for key in KEYS
            ],
        },
    }


def _schema(schema: dict[str, Any], title: str, description: str) -> dict[str, Any]:
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    if description:
        head["description"] = description
    return head | {name: part for name, part in schema.items() if name not in head}


def texts() -> dict[str, str]:
    """The files as they shall stand in contracts/."""
    return {
        name: json.dumps(document, indent=2, ensure_ascii=True) + "\n"
        for name, document in documents().items()
    }


def drifted(folder: Path = FOLDER) -> list[str]:
    """Names of files that differ from what the models say, lack, or are left over."""
    expected = texts()
    found = {path.name for path in folder.glob("*.json")}
    return sorted(
        name
        for name in found | set(expected)
        if name not in expected
        or name not in found
        or (folder / name).read_text("utf-8") != expected[name]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m livevalue.contracts", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 on drift")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    drift = drifted(options.folder)
    if options.check:
        for name in drift:
            print(f"contracts/{name} differs from the models: run python -m livevalue.contracts")
        return 1 if drift else 0
    options.folder.mkdir(parents=True, exist_ok=True)
    expected = texts()
    for name in drift:
        if name in expected:
            (options.folder / name).write_text(expected[name], "utf-8")
        else:
            (options.folder / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
