"""Tokens and tickets: what is ours is recognised, what was changed is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from weft.objects.errors import NotAuthenticated, Unavailable
from weft.trust.tickets import read_ticket_key, sign_ticket, verify_ticket
from weft.trust.tokens import hash_secret, make_token, parse_token, verify_secret

KEY = b"k" * 32


def test_a_token_is_taken_apart_as_it_was_made() -> None:
    text, sha256 = make_token("admin-1")
    token = parse_token(text)
    assert token is not None and token.id == "admin-1"
    assert verify_secret(token.secret, sha256) and sha256 == hash_secret(token.secret)
    assert len(token.secret) == 64 and make_token("admin-1")[0] != text


@pytest.mark.parametrize("text", ["", "weft_", "weft_a_b", "weft_A_" + "0" * 64, "weft_a_" + "0" * 65, "x" * 99])
def test_what_is_no_token_is_none(text: str) -> None:
    assert parse_token(text) is None


def test_every_digit_of_the_hash_counts() -> None:
    secret = "0" * 64
    right = hash_secret(secret)
    assert verify_secret(secret, right)
    for at in range(64):
        assert not verify_secret(secret, f"{right[:at]}{'0' if right[at] != '0' else '1'}{right[at + 1 :]}"), at
    assert not verify_secret(secret, right[:16]) and not verify_secret(secret, right + right)


def test_an_empty_hash_fits_no_secret() -> None:
    assert not verify_secret("", "") and not verify_secret("x", "")


def test_a_ticket_carries_its_claims_until_it_expires() -> None:
    ticket = sign_ticket(KEY, {"verb": "exec", "input": {"argv": ["é"]}, "expires": 100.0})
    assert verify_ticket(KEY, ticket, 99.0)["input"] == {"argv": ["é"]}
    with pytest.raises(NotAuthenticated, match="expired"):
        verify_ticket(KEY, ticket, 101.0)


def test_a_ticket_that_was_changed_or_signed_by_another_is_refused() -> None:
    ticket = sign_ticket(KEY, {"verb": "logs", "expires": 100.0})
    body, _, mac = ticket.partition(".")
    forged = sign_ticket(b"x" * 32, {"verb": "exec", "expires": 100.0})
    for bad in ("", ".", body, f"{body}.", f"{body}x.{mac}", f"{forged.partition('.')[0]}.{mac}", forged, "é.é"):
        with pytest.raises(NotAuthenticated, match="not one of this fabric's"):
            verify_ticket(KEY, bad, 1.0)
    for claims in ({"expires": "soon"}, {}):
        with pytest.raises(NotAuthenticated):
            verify_ticket(KEY, sign_ticket(KEY, claims), 1.0)


def test_a_ticket_has_one_spelling() -> None:
    ticket = sign_ticket(KEY, {"verb": "exec", "expires": 100.0})
    body, _, mac = ticket.partition(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spare = last[last.index(mac[-1]) ^ 1]  # of the last letter of 32 bytes two bits mean nothing
    for other in (f"{mac}=", mac[:-1] + spare, f"{mac[:5]}..{mac[5:]}", f"{mac} ", f"\n{mac}", f"{mac}.", mac + "AAAA"):
        with pytest.raises(NotAuthenticated, match="not one of this fabric's"):
            verify_ticket(KEY, f"{body}.{other}", 1.0)


def test_the_ticket_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "ticket.key"
    key = read_ticket_key(path)
    assert read_ticket_key(path) == key and len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["ticket.key"]
    path.write_bytes(b"short")
    with pytest.raises(Unavailable):
        read_ticket_key(path)


def test_tickets_load_no_cryptography() -> None:
    code = "import sys, weft.trust.tickets; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
