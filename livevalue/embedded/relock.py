"""Writes kafka.lock.json anew: `python -m livevalue.embedded.relock 4.4.0`.

For whoever raises the version; the product itself only reads the lock. Kafka comes first and
the log binding after it, each resolved by itself: resolved together, log4j's own dependency
management (it is the later BOM) replaced kafka-clients 4.4.0 by 3.9.1 (jgo 3.2.0).
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

# Kafka's slf4j-api is 1.7, hence slf4j-impl and not slf4j2-impl; without a binding the broker
# says nothing at all, not even why it refuses to start.
BINDING = ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.5")


def resolve(version: str) -> dict[str, object]:
    """The whole runtime class path of the broker, hashed."""
    from jgo.maven import Dependency, MavenContext, PythonResolver

    chosen: dict[tuple[str, str], dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        context = MavenContext(resolver=PythonResolver(), repo_cache=Path(scratch), timeout=60)
        for group, artifact, wanted in (("org.apache.kafka", "kafka_2.13", version), BINDING):
            root = Dependency(context.project(group, artifact).at_version(wanted).artifact())
            inputs, transitive = context.resolver.resolve([root])
            for dependency in [*inputs, *transitive]:
                if dependency.scope not in (None, "compile", "runtime"):
                    continue
                key = (dependency.groupId, dependency.artifactId)
                if key in chosen:
                    continue
                content = dependency.artifact.resolve().read_bytes()
                chosen[key] = {
                    "coordinate": f"{key[0]}:{key[1]}:{dependency.version}",
                    "size": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
    return {"version": version, "jars": list(chosen.values())}


def main() -> None:
    """Command line: the version of Kafka."""
    lock = resolve(sys.argv[1])
    target = Path(__file__).with_name("kafka.lock.json")
    target.write_text(json.dumps(lock, indent=1) + "\n")
    print(f"{target.name}: {len(lock['jars'])} jars")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
