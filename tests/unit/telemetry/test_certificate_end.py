"""When a certificate ends, as the library says it, without the library."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from weft.contracts.clock import SystemClock
from weft.telemetry.metrics.certificate_end import read_end, read_ends
from weft.trust.ca import Authority


def test_the_ends_of_the_fabrics_own_certificates_are_read(tmp_path: Path) -> None:
    authority = Authority(tmp_path, SystemClock())
    chain, _ = authority.renew_server(["n1"])
    ends = read_ends({"ca": authority.ca_path, "server": chain, "none": tmp_path / "none", "key": tmp_path / "ca.key"})
    assert ends == {
        name: x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
        for name, path in (("ca", authority.ca_path), ("server", chain))
    }


@given(st.text(alphabet="ABCMIgwx=\n", max_size=200))
def test_what_is_no_certificate_has_no_end(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        read_end(f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----")
