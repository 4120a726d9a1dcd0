"""A certificate and its key, as people give them: what is wrong is said, and neither of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from weft.contracts.clock import SystemClock
from weft.trust.ca import Authority
from weft.trust.certificate_pair import find_fault

NOW = 1_795_471_245.0
YEAR = 366 * 86_400.0


class Noon(SystemClock):
    def now(self) -> float:
        return NOW


def make(tmp_path: Path) -> tuple[str, str]:
    """Chain and key."""
    pem, _ = Authority(tmp_path, Noon()).make_service(["shop", "10.0.0.9"], "uid")
    at = pem.index("-----BEGIN CERTIFICATE")
    return pem[at:], pem[:at]


def test_a_generated_one_is_good_until_it_ends(tmp_path: Path) -> None:
    chain, key = make(tmp_path)
    assert find_fault(chain, key, NOW) == ""
    assert "ended on" in find_fault(chain, key, NOW + YEAR)
    assert "begins on" in find_fault(chain, key, NOW - YEAR)


def test_a_generated_one_has_the_services_names_and_is_of_a_ca_that_weft_itself_does_not_trust(tmp_path: Path) -> None:
    chain, _ = make(tmp_path)
    leaf, ca = x509.load_pem_x509_certificates(chain.encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["shop"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.9"]
    own = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    leaf.verify_directly_issued_by(ca)
    assert ca.public_key() != own.public_key()
    assert (tmp_path / "services" / "ca.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("what", ["chain", "key", "pair", "passphrase"])
def test_what_is_wrong_is_said_without_a_value(tmp_path: Path, what: str) -> None:
    chain, key = make(tmp_path)
    other = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    if what == "chain":
        chain = "SECRET"
    elif what == "key":
        key = "SECRET"
    elif what == "pair":
        key = other.private_bytes(*form, serialization.NoEncryption()).decode()
    else:
        key = other.private_bytes(*form, serialization.BestAvailableEncryption(b"x")).decode()
    fault = find_fault(chain, key, NOW)
    assert fault and "SECRET" not in fault and "BEGIN" not in fault
