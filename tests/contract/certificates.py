"""A certificate authority for tests, and the certificates it signs."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificate:
    """Its files."""

    certificate: Path
    key: Path


class Authority:
    """Signs with a key of its own; `certificate` is the file to trust."""

    def __init__(self, directory: Path, name: str = "test authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = directory / "ca.crt"
        signed = self._sign(self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=0), None, 30)
        self.certificate.write_bytes(signed)

    def issue(self, name: str, *, host: str = "127.0.0.1", valid_days: int = 30, organization: str = "") -> Certificate:
        """A certificate for a server or a client; with negative days it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        names_of_subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if organization:
            names_of_subject.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        subject = x509.Name(names_of_subject)
        constraints = x509.BasicConstraints(ca=False, path_length=None)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        issued = Certificate(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        issued.certificate.write_bytes(self._sign(subject, key.public_key(), constraints, names, valid_days))
        issued.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return issued

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        constraints: x509.BasicConstraints,
        names: x509.SubjectAlternativeName | None,
        valid_days: int,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=40))
            .not_valid_after(now + datetime.timedelta(days=valid_days))
            .add_extension(constraints, critical=True)
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
