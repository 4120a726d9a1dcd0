"""No secret gets through, however it is written; what is no secret stays readable."""

from __future__ import annotations

import json

import pytest

from weft.trust.redaction import HIDDEN, hide_in_body, hide_in_data, hide_in_text

SECRET = "s3cr3t-w0rd"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: basic {'QWxhZGRpbjpvcGVu'} password={SECRET}",
        f'{{"password": "{SECRET}"}}',
        f"password: {SECRET}",
        f"DB_PASSWORD='{SECRET} and more'",
        f"https://user:{SECRET}@registry.example.org/x",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"api_key = {SECRET}",
        f"-----BEGIN RSA PRIVATE KEY-----\nabc{SECRET}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\ncut {SECRET}",
        f"GET /x?ticket={SECRET}&a=1",
    ],
)
def test_a_secret_in_a_text_is_taken_out(text: str) -> None:
    hidden = hide_in_text(text)
    assert SECRET not in hidden and "and more" not in hidden and HIDDEN in hidden


def test_tokens_and_keys_are_known_by_their_looks() -> None:
    token, key = "weft_admin_" + "0a" * 32, "AKIAIOSFODNN7EXAMPLE"
    hidden = hide_in_text(f"token {token} key {key} jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln")
    assert "0a0a0a" not in hidden and key not in hidden and "eyJ" not in hidden


def test_a_known_secret_is_found_wherever_it_stands() -> None:
    assert hide_in_text("nobody would know tr0mbone for one", ["tr0mbone"]) == f"nobody would know {HIDDEN} for one"


def test_of_data_fields_that_hold_secrets_are_emptied_and_environments_keep_their_names() -> None:
    told = {
        "spec": {
            "env": {"MODE": "fast", "PIN": SECRET},
            "user_data": SECRET,
            "values": {"a": SECRET},
            "args": [SECRET],
            "task": {"command": ["run", SECRET]},
            "ssh_keys": ["ssh-rsa x"],
        },
        "token": SECRET,
        "registry_secret": "hub",
        "message": f"password={SECRET}",
        "key": None,
        "memory": 5,
    }
    hidden = hide_in_data(told)
    assert SECRET not in json.dumps(hidden)
    assert hidden["spec"]["env"] == {"MODE": HIDDEN, "PIN": HIDDEN} and hidden["spec"]["ssh_keys"] == ["ssh-rsa x"]
    assert (hidden["registry_secret"], hidden["memory"], hidden["key"]) == ("hub", 5, None)


def test_an_ordinary_text_stays_as_it_is() -> None:
    text = (
        "vm/web placed on n2 (least_loaded: cpu 12 %, memory 1 %); 3 tokens left, secret/hub is used by container/web"
    )
    assert hide_in_text(text) == text
    assert hide_in_body(b"\x00" * 12) == "(12 bytes)"
    assert hide_in_body(b'{"name":"web"}') == '{"name": "web"}'
