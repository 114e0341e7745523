"""A private CA, the server's TLS certificate, and an EC key pair for every client."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from inspect import signature
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS, SERVER_DAYS = 3650, 825
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names by which the SuperLink's own processes reach it."""


@dataclass(frozen=True)
class Authority:
    """A certificate authority for one deployment; whoever has its key can pose as the server."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls, name: str) -> Authority:
        """Return an authority with a new key."""
        key, subject = ec.generate_private_key(ec.SECP384R1()), _name(f"{name} CA")
        builder = (
            _certificate(subject, subject, key.public_key(), key.public_key(), CA_DAYS)
            .add_extension(x509.BasicConstraints(True, path_length=0), critical=True)
            .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        )
        return cls(key, builder.sign(key, hashes.SHA384()))

    def server(self, host: str) -> tuple[bytes, bytes]:
        """Return certificate and key, as PEM, of a server reached as `host` and on loopback."""
        key, ours = ec.generate_private_key(ec.SECP384R1()), self.certificate.subject
        hosts = dict.fromkeys((host, *LOCAL))
        names = x509.SubjectAlternativeName([_alternative(name) for name in hosts])
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = (
            _certificate(_name(host), ours, key.public_key(), self.key.public_key(), SERVER_DAYS)
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(False, path_length=None), critical=True)
            .add_extension(_usage("digital_signature"), critical=True)
            .add_extension(purpose, critical=False)
        )
        return pem(builder.sign(self.key, hashes.SHA384())), pem_key(key)


def node_keys(name: str) -> tuple[bytes, bytes]:
    """Return a SuperNode's private and public key (P-384) in OpenSSH's format, which flwr reads."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private, public + f" {name}\n".encode()


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as text."""
    return certificate.public_bytes(Encoding.PEM)


def pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a TLS key as text; services start without a person, so it has no passphrase."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(text: str) -> x509.Name:
    # X.509 allows a common name of 64 characters; clients look at the alternative names alone.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    # An hour back: a client's clock may be late.
    start = datetime.now(UTC) - timedelta(hours=1)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(authority, critical=False)
    )


def _usage(*granted: str) -> x509.KeyUsage:
    """Return a key's purposes: those named, and none of the others."""
    purposes = signature(x509.KeyUsage).parameters
    return x509.KeyUsage(**{purpose: purpose in granted for purpose in purposes})
