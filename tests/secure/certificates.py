"""Certificates of a test's own authority: a server's, a client's, and the wrong ones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

_PKCS8 = (
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM files of a certificate and its key, and both in one file as Kafka wants them."""

    certificate: Path
    key: Path
    both: Path


@dataclass(frozen=True, slots=True)
class Certificates:
    """Everything that the servers and clients of a run show each other."""

    authority: Path
    server: Pair  # localhost and 127.0.0.1
    client: Pair
    other_host: Pair  # of the right authority, for another host
    expired: Pair
    other_authority: Path
    stranger: Pair  # a client of the other authority


def make(folder: Path) -> Certificates:
    """Write them all into `folder`."""
    ours, other = trustme.CA(), trustme.CA()
    yesterday = datetime.now(UTC) - timedelta(days=1)

    def pair(name: str, certificate: trustme.LeafCert) -> Pair:
        files = Pair(*(folder / f"{name}{end}.pem" for end in ("", "-key", "-both")))
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(str(files.certificate), append=True)
        # Kafka reads keys in PKCS 8 only.
        key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
        files.key.write_bytes(key.private_bytes(*_PKCS8))
        files.both.write_bytes(files.key.read_bytes() + files.certificate.read_bytes())
        return files

    def authority(name: str, of: trustme.CA) -> Path:
        path = folder / f"{name}.pem"
        of.cert_pem.write_to_path(str(path))
        return path

    here = ("localhost", "127.0.0.1")
    return Certificates(
        authority("authority", ours),
        pair("server", ours.issue_cert(*here)),
        pair("client", ours.issue_cert("client.test", common_name="client")),
        pair("elsewhere", ours.issue_cert("elsewhere.test")),
        pair("expired", ours.issue_cert(*here, not_after=yesterday)),
        authority("other", other),
        pair("stranger", other.issue_cert("client.test", common_name="client")),
    )
