"""The sample permissions in docs/acl, given to the accounts of a test's servers."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka.admin import (  # type: ignore[import-untyped]
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)

ACL_FOLDER = Path(__file__).resolve().parents[2] / "docs" / "acl"

_OPERATIONS = {
    "Read": ACLOperation.READ,
    "Write": ACLOperation.WRITE,
    "Create": ACLOperation.CREATE,
    "Describe": ACLOperation.DESCRIBE,
    "DescribeConfigs": ACLOperation.DESCRIBE_CONFIGS,
    "AlterConfigs": ACLOperation.ALTER_CONFIGS,
}


def kafka_acls(
    prefix: str = "", roles: tuple[str, ...] = ("worker", "reader", "operator")
) -> list[ACL]:
    """What kafka.sh allows, with `prefix` before the names of topics and of the app."""
    parser = argparse.ArgumentParser()
    parser.add_argument("principal")
    parser.add_argument("--operation", action="append", default=[])
    for kind in ("topic", "group", "transactional-id"):
        parser.add_argument(f"--{kind}", action="append", default=[])
    parser.add_argument("--resource-pattern-type", default="literal")
    found = []
    for line in (ACL_FOLDER / "kafka.sh").read_text().splitlines():
        if not line.startswith("allow "):
            continue
        said = parser.parse_args(shlex.split(line)[1:])
        named = [(ResourceType.TOPIC, f"{prefix}{name}") for name in said.topic]
        named += [(ResourceType.GROUP, f"{prefix}{name}") for name in said.group]
        named += [(ResourceType.TRANSACTIONAL_ID, f"{prefix}{n}") for n in said.transactional_id]
        pattern = ACLResourcePatternType[said.resource_pattern_type.upper()]
        found += [
            ACL(
                principal=said.principal,
                host="*",
                operation=_OPERATIONS[operation],
                permission_type=ACLPermissionType.ALLOW,
                resource_pattern=ResourcePattern(kind, name, pattern),
            )
            for kind, name in named
            for operation in said.operation
            if said.principal.removeprefix("User:") in roles
        ]
    return found


def allow(bootstrap: str, acls: list[ACL]) -> None:
    """Give them, as the broker's own listener lets everybody do."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        done = admin.create_acls(acls)
        assert not done["failed"], done["failed"]
    finally:
        admin.close()
