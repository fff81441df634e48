"""The broker as kafka-python's clients reach it: arguments, whether it lets us in, errors in ours.

Blocking: for commands and the start of a worker, not for an event loop. `connection` serves every
kafka-python client of the project, `streams.connection` those of aiokafka.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kafka.errors as driver  # type: ignore[import-untyped]

from featurestore.secrets import refused
from streams.connection import SECTION, security
from streams.errors import LogAuthError, LogError, LogUnavailable, StreamsError, TopicError
from streams.knock import Hung, HungAtLogin, Refused, knock
from streams.settings import KafkaSettings

_BOOTSTRAP_MS = 10_000
# kafka-python draws an address for each try, and waits for one that has failed and is drawn again,
# up to 30 s by its default: of two, one of them down, ten draws in ten seconds could all miss.
_BACKOFF_MS = 500
# A broker that goes down amid a login looks the same, and that is no reason to halt.
_PERHAPS = f"; it may refuse it: {SECTION}__USERNAME, __PASSWORD, __SASL_MECHANISM"


def connection(kafka: KafkaSettings) -> dict[str, Any]:
    """Arguments of a kafka-python client: address, TLS, SASL.

    >>> connection(KafkaSettings(bootstrap="127.0.0.1:9092"))["bootstrap_servers"]
    ['127.0.0.1:9092']
    """
    if not kafka.bootstrap:
        raise LogError(
            "no broker is configured: set LIVEVALUE_KAFKA__BOOTSTRAP to host:port, "
            "or start one with `livevalue up`"
        )
    options: dict[str, Any] = {
        "bootstrap_servers": [part.strip() for part in kafka.bootstrap.split(",")],
        "bootstrap_timeout_ms": _BOOTSTRAP_MS,
        "reconnect_backoff_max_ms": _BACKOFF_MS,
        "client_id": kafka.app,
        **security(kafka),
    }
    return options


@contextmanager
def translated(kafka: KafkaSettings) -> Iterator[None]:
    """kafka-python's errors, said in ours, with what the operator does next."""
    overheard = _Overheard()
    try:
        with overheard:
            yield
    except StreamsError:
        raise
    except (
        driver.SaslAuthenticationFailedError,
        driver.UnsupportedSaslMechanismError,
        driver.IllegalSaslStateError,
    ) as error:
        raise _refused(kafka, type(error).__name__) from error
    except (
        driver.TopicAuthorizationFailedError,
        driver.ClusterAuthorizationFailedError,
        driver.GroupAuthorizationFailedError,
        driver.TransactionalIdAuthorizationFailedError,
    ) as error:
        what = type(error).__name__.removesuffix("AuthorizationFailedError").lower()
        raise forbidden(kafka, "do this with", f"the {what}") from error
    except driver.UnknownTopicOrPartitionError as error:
        raise TopicError(f"a topic is missing: run `livevalue topics --apply` ({error})") from error
    except (driver.KafkaTimeoutError, driver.KafkaConnectionError) as error:
        if overheard.refusal:
            raise _refused(kafka, overheard.refusal) from error
        if kafka.security.startswith("SASL") and overheard.closed > 1:
            raise _silent(kafka, f"it closes the connection at the login{_PERHAPS}") from error
        raise _silent(kafka, "no answer") from error
    except driver.KafkaError as error:
        # -1 is whatever a broker did not foresee, as it does amid a start or an end.
        passes = error.retriable or isinstance(error, driver.UnknownError)
        kind = LogUnavailable if passes else LogError
        raise kind(f"the broker at {kafka.bootstrap} answers: {error}") from error
    except OSError as error:
        raise LogError(
            f"cannot connect to {kafka.bootstrap} ({error}): check LIVEVALUE_KAFKA__BOOTSTRAP "
            "and __CA_FILE"
        ) from error


def _silent(kafka: KafkaSettings, why: str) -> LogUnavailable:
    return LogUnavailable(
        f"no broker answers at {kafka.bootstrap} with {kafka.security} ({why}): start one "
        "(`livevalue up`), or check LIVEVALUE_KAFKA__BOOTSTRAP and __SECURITY"
    )


def _refused(kafka: KafkaSettings, how: str) -> LogAuthError:
    return LogAuthError(
        f"the broker at {kafka.bootstrap} refuses the login of {kafka.username!r} ({how}): check "
        "LIVEVALUE_KAFKA__USERNAME, __PASSWORD and __SASL_MECHANISM"
    )


class _Overheard(logging.Handler):
    """Notes a refused login while the driver connects.

    kafka-python 3.0.12 logs the broker's refusal, tries again until its time is up, and then
    raises a time-out that does not tell a wrong password from a broker that is down. Where the
    broker's answer and its closing of the connection come together it hears only the latter.
    """

    _KINDS = ("SaslAuthenticationFailedError", "UnsupportedSaslMechanismError")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.refusal = ""
        self.closed = 0  # connections that the broker closed
        self._logger = logging.getLogger("kafka.net")
        self._before = (self._logger.level, self._logger.propagate)

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        self.refusal = next((kind for kind in self._KINDS if kind in said), self.refusal)
        self.closed += "failed: KafkaConnectionError: socket disconnected" in said

    def __enter__(self) -> None:
        # A worker mutes the driver (streams.logs): heard it must be all the same, not printed.
        self._before = (self._logger.level, self._logger.propagate)
        if not self._logger.isEnabledFor(logging.WARNING):
            self._logger.setLevel(logging.WARNING)
            self._logger.propagate = False
        self._logger.addHandler(self)

    def __exit__(self, *error: object) -> None:
        self._logger.removeHandler(self)
        level, self._logger.propagate = self._before
        self._logger.setLevel(level)


def reach(kafka: KafkaSettings) -> None:
    """Raise at once where nothing listens, or nothing that speaks Kafka with our security.

    kafka-python tries for its whole bootstrap time, ten seconds, what is plain after a moment,
    and then cannot say whether the certificate or the network is at fault.
    """
    options = connection(kafka)
    problem: LogError | LogUnavailable | None = None
    for address in options["bootstrap_servers"]:
        host, _, port = address.rpartition(":")
        try:
            number = int(port)
        except ValueError:
            raise LogError(
                f"{address!r} is no address: write host:port[,host:port] into "
                "LIVEVALUE_KAFKA__BOOTSTRAP"
            ) from None
        try:
            knock(host.strip("[]"), number, options)
        except Refused as error:
            raise _refused(kafka, str(error)) from None
        except ssl.SSLError as error:
            said = refused(error, address, SECTION, f"{SECTION}__BOOTSTRAP")
            # Closed amid the handshake: it goes down in this moment, or what stands before it.
            kind = LogUnavailable if isinstance(error, ssl.SSLEOFError) else LogError
            problem = kind(
                said
                or f"{address} and we do not agree on TLS ({error.reason}): correct "
                f"{SECTION}__SECURITY (it is {kafka.security})"
            )
        except OSError as error:
            said = error.strerror or str(error) or type(error).__name__
            if isinstance(error, Hung) and kafka.security == "SSL":
                # It may hang up before its alert is read.
                said += f"; it may want a certificate: {SECTION}__CERT_FILE"
            if isinstance(error, HungAtLogin):
                said += _PERHAPS
            problem = _silent(kafka, said)
        else:
            return
    assert problem is not None
    raise problem


def forbidden(kafka: KafkaSettings, operation: str, what: str) -> LogAuthError:
    """The broker's permissions keep us from `operation`."""
    who = kafka.username if kafka.security.startswith("SASL") else "this client"
    return LogAuthError(
        f"{who} may not {operation} {what} at {kafka.bootstrap}: give "
        "it the permissions of its role in docs/acl/kafka.sh, or another account in "
        f"{SECTION}__USERNAME"
    )
