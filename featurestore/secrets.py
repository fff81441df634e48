"""Secrets and certificates from files, for Redis and Kafka alike; what may be shown of a URL.

A password file is read again at each connection, so a password that was changed needs no restart.
Certificates are checked with the name of the host, always. Every error is one line that names the
setting at fault and never holds what the file holds.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from urllib.parse import quote, unquote

from pydantic import SecretStr

MASK = "***"


class SecretError(Exception):
    """A file of a secret or certificate cannot be used; the message names the setting."""


def password(said: SecretStr, file: str, setting: str) -> str:
    """The password that was said, else the first line of `file`, else none.

    `setting` is the file's, for the message.

    >>> password(SecretStr("hunter2"), "", "LIVEVALUE_KAFKA__PASSWORD_FILE")
    'hunter2'
    """
    text = said.get_secret_value()
    if text or not file:
        return text
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"cannot read {file} ({_why(error)}): correct {setting}") from None
    if not lines or not lines[0]:
        raise SecretError(
            f"the first line of {file} is empty: write the password there ({setting})"
        )
    return lines[0]


def shown(url: str, *, user: bool = False) -> str:
    """A URL without its login and options, either of which may hold a secret; else the text.

    `user`: show the user's name (that of Redis is no secret, an S3 key or a token may be), and the
    options. A password may hold anything, so the last @ ends it.

    >>> shown("s3://key:hunter2@bucket/x"), shown("az://models?sig=hunter2"), shown("/data/models")
    ('s3://***@bucket/x', 'az://models?***', '/data/models')
    >>> shown("redis://app:hunter2@cache:6379/0", user=True), shown("redis://app@cache", user=True)
    ('redis://app:***@cache:6379/0', 'redis://app@cache')
    """
    scheme, there, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    if not there:
        return url
    if user:
        name, colon, _ = login.partition(":")
        return f"{scheme}://{name}{colon and f':{MASK}'}{at}{place}"
    place, asked, _ = place.partition("?")
    return f"{scheme}://{at and MASK}{at}{place}{asked and f'?{MASK}'}"


def masked(text: str, url: str) -> str:
    """What a driver says of `url`, without anything that `shown` leaves out, however spelt.

    Parts of it, too: one that holds a / or : unquoted is taken apart where the URL is parsed.

    >>> masked("404 at http://k:hunter%202@h/x for 'hunter 2'", "http://k:hunter%202@h/x")
    "404 at http://***@h/x for '***'"
    >>> masked("no such signature: hunter2", "az://models?se=2026&sig=hunter2")
    'no such signature: ***'
    """
    rest = url.partition("://")[2]
    login, _, place = rest.rpartition("@")
    options = place.partition("?")[2]
    values = (option.partition("=")[2] for option in re.split("[&;]", options))
    secrets = {login, *re.split(r"[:/?#@]", login), options, *values} - {""}
    spellings = {s for one in secrets for s in (one, unquote(one), quote(unquote(one), safe=""))}
    for spelling in sorted(spellings, key=len, reverse=True):
        if spelling.isalnum() and len(spelling) < 4:  # as a word only: a letter is everywhere
            text = re.sub(rf"\b{spelling}\b", MASK, text)
        else:
            text = text.replace(spelling, MASK)
    return text


def tls(section: str, ca_file: str, cert_file: str, key_file: str) -> ssl.SSLContext:
    """A client's context: the server's certificate and host name are checked.

    `section` is that of the settings, for example LIVEVALUE_KAFKA. Without a CA file the system's
    authorities are trusted; a key may stand in the certificate's file, but without a passphrase.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ValueError) as error:
        raise SecretError(
            f"cannot read certificates from {ca_file} ({_why(error)}): correct {section}__CA_FILE"
        ) from None
    if key_file and not cert_file:
        raise SecretError(f"there is a key but no certificate: set {section}__CERT_FILE, too")
    if cert_file:
        try:
            # Asked for a passphrase, OpenSSL would wait at the terminal.
            context.load_cert_chain(cert_file, key_file or None, password=_no_passphrase)
        except (OSError, ValueError) as error:
            raise SecretError(
                f"cannot use certificate {cert_file} with key {key_file or cert_file} "
                f"({_why(error)}): correct {section}__CERT_FILE and __KEY_FILE"
            ) from None
    return context


def refused(error: ssl.SSLError, where: str, section: str, address: str) -> str:
    """Why there is no TLS with the server at `where`, and which setting to look at.

    `address` is the setting with the server's address.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message.rstrip(".")
        if "mismatch" in said or "not valid for" in said:
            return (
                f"the certificate of {where} is for another host ({said}): write the name that it "
                f"is for into {address}, or give the server a certificate for this one"
            )
        if "expired" in said or "not yet valid" in said:
            return (
                f"the certificate of {where} is not valid now ({said}): renew it there, or point "
                f"{address} at another server"
            )
        return (
            f"the certificate of {where} is not trusted ({said}): set {section}__CA_FILE to the "
            "authority that signed it"
        )
    said = error.reason or str(error)
    if "ALERT" in said.upper():
        return (
            f"{where} refuses our certificate, or the lack of one ({said}): set "
            f"{section}__CERT_FILE and __KEY_FILE to one that it trusts"
        )
    return ""


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase; take it out with `openssl pkey`")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "no certificate in it"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
