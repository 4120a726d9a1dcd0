"""The fabric's certificate authority: made once, signs the server's certificate and those of nodes.

Keeps ``ca.key``, ``ca.crt``, ``server.key``, ``server.crt``, ``own.pem`` in the server's state folder, and the key and certificate
of other CAs in ``services`` there, for people's services, and in ``etcd``, for members of the store: nothing else trusts those.
``own.pem`` is what a server shows the other servers when it asks them: the key and certificate of a client with the common name
``server:<uid>``. A node's certificate has the common name ``node:<uid>``, and serves as a client's, and as a server's towards
nodes that expect that very name. It names no host, so it can never pass for the server's certificate, which serves as a server's
only.
"""

from __future__ import annotations

import datetime
import ipaddress
import math
import os
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from weft.contracts.clock import Clock
from weft.contracts.durable_file import write_durably
from weft.objects.errors import InvalidInput, Unavailable
from weft.objects.identity import (
    MEMBER_NAME,
    METRICS_NAME,
    NODE_PREFIX,
    SERVER_NAME,
    SERVER_PREFIX,
    ServerIdentity,
)

CA_YEARS = 10
LEAF_DAYS = 365
RENEW_DAYS = 30
BEFORE_SECONDS = 86400.0  # a certificate begins this long before it is signed: a node's clock may be behind
_MAX_CSR_BYTES = 20_000
_SERVES = (ExtendedKeyUsageOID.SERVER_AUTH,)
_BOTH = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


class Authority:
    """The CA in folder ``state``; made there if it isn't yet."""

    def __init__(self, state: Path, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._key, self._certificate = self._load_or_make()

    @property
    def ca(self) -> str:
        """The CA's certificate as PEM text."""
        return _pem(self._certificate)

    @property
    def ca_path(self) -> Path:
        return self._state / "ca.crt"

    def renew_server(self, names: Iterable[str]) -> tuple[Path, Path]:
        """Ensure a server certificate for ``names`` (addresses and host names) that is valid for more than 30 days; the paths of
        chain and key. The chain ends with the CA, so that a first contact can check its digest."""
        return self._renew(
            self._state, "server", sorted({SERVER_NAME, "localhost", "127.0.0.1", *names}), SERVER_NAME, _SERVES
        )

    def renew_own(self, server: ServerIdentity) -> Path:
        """Ensure a certificate, valid for more than 30 days, that ``server`` shows the other servers; the path of key and chain."""
        path, subject = self._state / "own.pem", _name(f"{SERVER_PREFIX}{server.uid}", server.name)
        if not self._is_good(path, path, [], subject):
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._sign(key.public_key(), subject, (ExtendedKeyUsageOID.CLIENT_AUTH,), [])
            write_durably(path, _key_pem(key) + _pem(certificate).encode())
        return path

    def renew_metrics(self, folder: Path) -> tuple[Path, Path]:
        """Renew like ``renew_server``, for the server's own database for metrics, in ``folder``."""
        return self._renew(folder, "server", [METRICS_NAME], METRICS_NAME, _SERVES)

    def renew_member(self, host: str) -> tuple[Path, Path]:
        """Renew like ``renew_server``, for the member of the store at ``host``, which is a client of the others, too."""
        return self._renew(self._state, "member", [MEMBER_NAME, host], MEMBER_NAME, _BOTH)

    def _renew(
        self, folder: Path, file: str, wanted: list[str], common_name: str, purposes: tuple[x509.ObjectIdentifier, ...]
    ) -> tuple[Path, Path]:
        chain, key_path, subject = folder / f"{file}.crt", folder / f"{file}.key", _name(common_name)
        if not self._is_good(chain, key_path, wanted, subject):
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._sign(key.public_key(), subject, purposes, [_general_name(n) for n in wanted])
            write_durably(key_path, _key_pem(key))
            write_durably(chain, (_pem(certificate) + self.ca).encode(), 0o644)
        return chain, key_path

    def begin(self) -> float:
        """When a certificate that is signed now begins (unix seconds)."""
        return math.floor(self._clock.now()) - BEFORE_SECONDS

    def sign_node(self, csr: x509.CertificateSigningRequest, uid: str, begins: float | None = None) -> str:
        """A certificate (PEM) for the node ``uid`` with the key of ``csr``; the rest of ``csr`` is ignored."""
        certificate = self._sign(csr.public_key(), _name(f"{NODE_PREFIX}{uid}"), _BOTH, [], begins)
        return _pem(certificate)

    def make_service(self, names: Iterable[str], uid: str) -> tuple[str, float]:
        """Make for the service ``uid`` in PEM: a new key, its certificate for these names and addresses, and that of the CA of
        services; and when it ends (unix seconds)."""
        authority = Authority(self._state / "services", self._clock)
        key = ec.generate_private_key(ec.SECP256R1())
        found = [_general_name(name) for name in names]
        certificate = authority._sign(key.public_key(), _name(f"service:{uid}"), _SERVES, found)
        ends = certificate.not_valid_after_utc.timestamp()
        return _key_pem(key).decode() + _pem(certificate) + authority.ca, ends

    def _load_or_make(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key_path, path = self._state / "ca.key", self.ca_path
        if key_path.exists() and path.exists():
            try:
                key = serialization.load_pem_private_key(key_path.read_bytes(), None)
                certificate = x509.load_pem_x509_certificate(path.read_bytes())
            except (ValueError, OSError) as problem:
                raise Unavailable(f"the CA in {self._state} can't be read: {problem}") from problem
            if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key():
                return key, certificate
            raise Unavailable(f"ca.key and ca.crt in {self._state} do not belong together")
        fresh = ec.generate_private_key(ec.SECP256R1())
        self._state.mkdir(parents=True, exist_ok=True)
        certificate = self._make_root(fresh)
        write_durably(key_path, _key_pem(fresh))
        write_durably(path, _pem(certificate).encode(), 0o644)
        return fresh, certificate

    def _make_root(self, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        name = _name(f"weft CA {os.urandom(4).hex()}")
        public = key.public_key()
        return (
            self._builder(public, name, name, 365.25 * CA_YEARS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )

    def _sign(
        self,
        public: object,
        subject: x509.Name,
        purposes: tuple[x509.ObjectIdentifier, ...],
        names: list[x509.GeneralName],
        begins: float | None = None,
    ) -> x509.Certificate:
        builder = (
            self._builder(public, subject, self._certificate.subject, LEAF_DAYS, begins)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _builder(
        self, public: object, subject: x509.Name, issuer: x509.Name, days: float, begins: float | None = None
    ) -> x509.CertificateBuilder:
        begin = datetime.datetime.fromtimestamp(self.begin() if begins is None else begins, datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=days, seconds=BEFORE_SECONDS))
        )

    def _is_good(self, chain: Path, key_path: Path, names: list[str], subject: x509.Name) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(chain.read_bytes())
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
            certificate.verify_directly_issued_by(self._certificate)
        except (OSError, ValueError, TypeError, InvalidSignature):
            return False
        try:
            found = set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        except x509.ExtensionNotFound:
            found = set()
        left = certificate.not_valid_after_utc - self._now()
        return (
            key.public_key() == certificate.public_key()
            and certificate.subject == subject
            and left > datetime.timedelta(days=RENEW_DAYS)
            and all(_general_name(name) in found for name in names)
        )

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._clock.now(), datetime.UTC)


def read_csr(pem: str) -> x509.CertificateSigningRequest:
    """The signing request, checked: it is signed with its own key, and the key is accepted. Raises InvalidInput."""
    hint = "weft agent join makes a valid one"
    if len(pem) > _MAX_CSR_BYTES:
        raise InvalidInput("csr is too long", field="csr", hint=hint)
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        valid, public = csr.is_signature_valid, csr.public_key()
    except (ValueError, TypeError, UnicodeError) as problem:
        raise InvalidInput(f"csr is not a certificate signing request: {problem}", field="csr", hint=hint) from problem
    if not valid:
        raise InvalidInput("csr is not signed with its own key", field="csr", hint=hint)
    fit = isinstance(public, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey))
    if not fit and not (isinstance(public, rsa.RSAPublicKey) and public.key_size >= 2048):
        raise InvalidInput("csr has a key of a type that is not accepted", field="csr", hint="use EC P-256")
    return csr


def digest_of_key(csr: x509.CertificateSigningRequest) -> str:
    """SHA-256 of the request's public key: the same for two requests of the same owner."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(
        csr.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return digest.finalize().hex()


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common_name: str, unit: str = "") -> x509.Name:
    units = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)] if unit else []
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name), *units])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
