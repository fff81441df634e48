"""How clients reach the broker: address, TLS and SASL from the settings.

Every aiokafka client takes its arguments from here, every kafka-python client from
`streams.broker.connection`, which takes its security from here: it is configured once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from featurestore.secrets import SecretError, password, tls
from streams import headers, markers
from streams.errors import LogError
from streams.settings import KafkaSettings

SECTION = "LIVEVALUE_KAFKA"

headers.install()
markers.install()


def aiokafka_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Connection arguments of an aiokafka client.

    Raises LogError where no broker is configured or a file of the settings cannot be used.

    >>> aiokafka_options(KafkaSettings(bootstrap="127.0.0.1:9092"))["security_protocol"]
    'PLAINTEXT'
    """
    if not kafka.bootstrap:
        raise LogError(
            "no broker is configured: set LIVEVALUE_KAFKA__BOOTSTRAP to host:port, "
            "or start one with `livevalue up`"
        )
    return {"bootstrap_servers": kafka.bootstrap, **security(kafka)}


def security(kafka: KafkaSettings) -> dict[str, Any]:
    """Protocol, TLS and SASL, by the names that aiokafka and kafka-python share.

    >>> security(KafkaSettings(security="SASL_SSL", username="app"))["sasl_plain_username"]
    'app'
    """
    options: dict[str, Any] = {"security_protocol": kafka.security}
    try:
        if kafka.security.endswith("SSL"):
            options["ssl_context"] = tls(SECTION, kafka.ca_file, kafka.cert_file, kafka.key_file)
        if kafka.security.startswith("SASL"):
            options["sasl_mechanism"] = kafka.sasl_mechanism
            options["sasl_plain_username"] = kafka.username
            options["sasl_plain_password"] = password(
                kafka.password, kafka.password_file, f"{SECTION}__PASSWORD_FILE"
            )
    except SecretError as error:
        raise LogError(str(error)) from None
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
