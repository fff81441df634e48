"""How aiokafka clients reach the broker: address, TLS and SASL from the settings.

Every aiokafka client of the project takes its arguments from here, so that a deployment's
security is configured once.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from streams.errors import LogError
from streams.settings import KafkaSettings


def aiokafka_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Connection arguments of an aiokafka client.

    Raises LogError where no broker is configured or the CA file cannot be read.

    >>> aiokafka_options(KafkaSettings(bootstrap="127.0.0.1:9092"))["security_protocol"]
    'PLAINTEXT'
    """
    if not kafka.bootstrap:
        raise LogError(
            "no broker is configured: set LIVEVALUE_KAFKA__BOOTSTRAP to host:port, "
            "or start one with `livevalue up`"
        )
    options: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap,
        "security_protocol": kafka.security,
    }
    if kafka.security.endswith("SSL"):
        try:
            options["ssl_context"] = ssl.create_default_context(cafile=kafka.ca_file or None)
        except OSError as error:
            raise LogError(
                f"cannot read the CA file {kafka.ca_file!r} ({error.strerror}): "
                "set LIVEVALUE_KAFKA__CA_FILE"
            ) from None
    if kafka.security.startswith("SASL"):
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.username
        options["sasl_plain_password"] = kafka.password.get_secret_value()
    return options


async def stop(client: Any, patience_s: float = 5.0) -> None:
    """Stop an aiokafka client in whatever state; never raises what the client does.

    Stopped right after its start, a consumer without a group lets the CancelledError of a task
    of its own out (aiokafka 0.14: NoGroupCoordinator.close), which would end the caller's task.
    """
    try:
        await asyncio.wait_for(client.stop(), patience_s)
    except (KafkaError, OSError, TimeoutError, AssertionError):
        pass  # the broker is gone, or the producer was fenced; the sockets are closed
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
