"""What an OIDC provider says of a person counts only if it said so itself, to us, now, with its own key."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from weft.objects.errors import NotAuthenticated
from weft.trust.id_tokens import Expected, Keys, UnknownKey, check_id_token, read_keys

NOW = 1_800_000_000.0
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = rsa.generate_private_key(65537, 2048)
EXPECTED = Expected(issuer="https://id.example", client="weft", nonce="n1")
CLAIMS: dict[str, Any] = {
    "iss": "https://id.example", "aud": "weft", "sub": "42", "exp": NOW + 300, "iat": NOW - 5, "nonce": "n1",
    "preferred_username": "Ann", "name": "Ann Example", "groups": ["staff", "all", 7, ""],
}  # fmt: skip


def make_keys() -> Keys:
    keys = [
        {**RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True), "kid": "r", "use": "sig", "alg": "RS256"},
        {**ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True), "kid": "e", "use": "sig"},
        {"kty": "oct", "kid": "o", "k": base64.urlsafe_b64encode(b"k" * 32).decode()},
        {"kty": "RSA", "kid": "broken"},
        {**RSAAlgorithm.to_jwk(OTHER_KEY.public_key(), as_dict=True), "kid": "enc", "use": "enc"},
    ]
    return read_keys({"keys": keys})


def sign(key: Any = RSA_KEY, algorithm: str = "RS256", kid: str | None = "r", **claims: Any) -> str:
    given = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(given, key, algorithm, {"kid": kid} if kid is not None else {})


def check(text: str) -> Any:
    return check_id_token(text, make_keys(), EXPECTED, NOW)


def test_a_good_token_names_the_person_and_the_groups() -> None:
    for text in (sign(), sign(EC_KEY, "ES256", "e"), sign(aud=["weft"]), sign(aud=["weft", "x"], azp="weft")):
        found = check(text)
        assert (found.subject, found.name, found.full_name, found.groups) == (
            "42",
            "Ann",
            "Ann Example",
            ("all", "staff"),
        )
    assert check(sign(groups="staff")).groups == ("staff",)
    assert check(sign(groups={"a": 1})).groups == ()
    assert check(sign(exp=NOW - 30)).subject == "42"  # clocks differ a little


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"}, {"iss": None}, {"aud": "other"}, {"aud": None}, {"aud": ["weft", "other"]},
        {"aud": ["weft", "other"], "azp": "other"}, {"exp": NOW - 100}, {"exp": None}, {"exp": "never"}, {"iat": None},
        {"iat": NOW + 100}, {"nbf": NOW + 100}, {"nonce": "n2"}, {"nonce": None}, {"sub": ""}, {"sub": None}, {"sub": "x" * 300},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_for_us_or_not_now_is_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(NotAuthenticated) as refused:
        check(sign(**claims))
    assert refused.value.token == "invalidIdToken"


def forge(header: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(part).encode() for part in (header, CLAIMS)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, signature))


def test_only_the_provider_s_own_key_signs() -> None:
    pem = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signing = forge({"alg": "HS256", "kid": "r"}).rpartition(".")[0]
    shared = base64.urlsafe_b64encode(hmac.digest(pem, signing.encode(), "sha256")).rstrip(b"=").decode()
    forged = [
        sign(OTHER_KEY),
        forge({"alg": "none", "kid": "r"}),
        forge({"alg": "None", "kid": "r"}),
        forge({"alg": "HS256", "kid": "o"}),
        # the provider's public key as a shared one
        f"{signing}.{shared}",
        sign(EC_KEY, "ES256", "r"),  # one key's algorithm with another key
        sign()[:-4] + "AAAA",
        "no.token", "", "a" * 10_000,
    ]  # fmt: skip
    for text in forged:
        with pytest.raises(NotAuthenticated) as refused:
            check(text)
        assert not isinstance(refused.value, UnknownKey)


def test_an_unknown_key_is_told_apart_and_keys_for_encryption_sign_nothing() -> None:
    for text in (sign(OTHER_KEY, kid="new"), sign(OTHER_KEY, kid="enc"), sign(OTHER_KEY, kid="broken"), sign(kid=None)):
        with pytest.raises(UnknownKey):
            check(text)
    only = {"r": make_keys()["r"]}
    assert check_id_token(sign(kid=None), only, EXPECTED, NOW).subject == "42"


@pytest.mark.parametrize("document", [None, [], {"keys": 7}, {"keys": [7, None, {}]}, {}])
def test_a_set_of_keys_that_is_none_has_no_keys(document: Any) -> None:
    assert read_keys(document) == {}
