"""How aiokafka clients reach the broker: address, TLS and SASL from the settings.

Every aiokafka client of the project takes its arguments from here, so that a deployment's
security is configured once.
"""

from __future__ import annotations

import ssl
from typing import Any

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
