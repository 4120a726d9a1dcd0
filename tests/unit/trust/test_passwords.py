"""Passwords are kept as hashes that cost whoever guesses as much as RFC 9106 recommends."""

from __future__ import annotations

from weft.trust.passwords import hash_password, verify_password


def test_a_password_is_verified_by_a_hash_that_costs_what_the_rfc_recommends() -> None:
    kept = hash_password("correct horse")
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$") and kept != hash_password("correct horse")
    assert verify_password("correct horse", kept) and not verify_password("correct house", kept)
    assert not verify_password("correct horse", "no hash") and not verify_password("nobody has this password", None)
