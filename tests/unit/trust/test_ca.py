"""The CA: made once, renewed in time, and its certificates good for one purpose each."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.node_key import make_node_key

from weft.objects.errors import InvalidInput, Unavailable
from weft.objects.identity import SERVER_NAME
from weft.trust.ca import Authority, digest_of_key, read_csr


class SetClock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.at = datetime.datetime.now(datetime.UTC).timestamp()

    def now(self) -> float:
        return self.at

    def elapsed(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


def purposes(pem: str) -> list[x509.ObjectIdentifier]:
    certificate = x509.load_pem_x509_certificate(pem.encode())
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_the_ca_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    first = Authority(tmp_path, SetClock()).ca
    assert Authority(tmp_path, SetClock()).ca == first
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600


def test_a_half_lost_or_mixed_up_ca_is_not_silently_replaced(tmp_path: Path) -> None:
    Authority(tmp_path, SetClock())
    other = tmp_path / "other"
    other.mkdir()
    Authority(other, SetClock())
    (tmp_path / "ca.key").write_bytes((other / "ca.key").read_bytes())
    with pytest.raises(Unavailable, match="do not belong together"):
        Authority(tmp_path, SetClock())
    (tmp_path / "ca.key").write_text("nonsense")
    with pytest.raises(Unavailable, match="can't be read"):
        Authority(tmp_path, SetClock())


def test_the_server_certificate_is_kept_until_its_time_or_its_names_are_up(tmp_path: Path) -> None:
    clock = SetClock()
    authority = Authority(tmp_path, clock)
    chain, key = authority.renew_server(["10.0.0.1"])
    first = chain.read_text()
    assert key.stat().st_mode & 0o777 == 0o600
    assert authority.renew_server(["10.0.0.1"]) and chain.read_text() == first
    authority.renew_server(["10.0.0.1", "weft.example"])
    second = chain.read_text()
    names = x509.load_pem_x509_certificate(second.encode()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert {SERVER_NAME, "localhost", "weft.example"} <= set(names.value.get_values_for_type(x509.DNSName))
    clock.at += 336 * 86400
    authority.renew_server(["10.0.0.1"])
    assert chain.read_text() != second
    assert chain.read_text().endswith(authority.ca)


def test_a_node_certificate_says_only_who_it_is_and_names_no_host_whose_server_it_could_be_taken_for(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path, SetClock())
    pem = authority.sign_node(read_csr(make_node_key(tmp_path / "node.key")), "abc")
    certificate = x509.load_pem_x509_certificate(pem.encode())
    assert certificate.subject.rfc4514_string() == "CN=node:abc"
    assert purposes(pem) == [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert purposes((authority.renew_server([])[0]).read_text()) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_requests_are_told_apart_by_their_key_alone(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    one, two = read_csr(make_node_key(path)), read_csr(make_node_key(path))
    assert digest_of_key(one) == digest_of_key(two)
    assert digest_of_key(read_csr(make_node_key(tmp_path / "other.key"))) != digest_of_key(one)


def test_a_request_that_is_none_is_refused(tmp_path: Path) -> None:
    good = make_node_key(tmp_path / "node.key")
    for bad in ("", "x", good[:200], "x" * 30_000, good.replace("M", "N", 3)):
        with pytest.raises(InvalidInput) as caught:
            read_csr(bad)
        assert caught.value.field == "csr"
