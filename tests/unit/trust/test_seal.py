"""What is sealed is read with the key it was sealed with, for the place it was sealed for, and not otherwise."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from weft.objects.errors import Unavailable
from weft.trust.access_keys import KEY_ID, derive_secret, make_key_id
from weft.trust.seal import SealKeys, is_sealed_with, name_key, open_seal_keys, seal, unseal


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    (key,) = open_seal_keys(tmp_path).keys
    assert open_seal_keys(tmp_path).keys == (key,) and len(key) == 32
    assert (tmp_path / "seal.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "seal.key").read_text().strip() == key.hex()


@pytest.mark.parametrize(
    "found", [b"", b"short", b"zz" * 32, b"\xff" * 40, b"ab" * 32 + b"\n" + b"cd" * 31, b"ab\n" * 32]
)
def test_a_file_that_holds_no_key_is_said_to(tmp_path: Path, found: bytes) -> None:
    (tmp_path / "seal.key").write_bytes(found)
    with pytest.raises(Unavailable, match="holds no key"):
        open_seal_keys(tmp_path)
    assert (tmp_path / "seal.key").read_bytes() == found


def test_the_first_key_seals_all_open_and_another_process_sees_a_change_at_once(tmp_path: Path) -> None:
    keys, other = open_seal_keys(tmp_path), open_seal_keys(tmp_path)
    before, new = keys.keys[0], b"n" * 32
    sealed = keys.seal(b"the secret", "here")
    keys.keep([new, before])
    again = other.seal(b"the secret", "here")
    assert is_sealed_with(new, again, "here") and is_sealed_with(before, sealed, "here")
    assert other.unseal(sealed, "here") == other.unseal(again, "here") == b"the secret"
    assert other.ids == [name_key(new), name_key(before)] and new.hex() not in "".join(other.ids)
    assert (tmp_path / "seal.key").stat().st_mode & 0o777 == 0o600
    keys.keep([new])
    with pytest.raises(Unavailable, match="another seal"):
        other.unseal(sealed, "here")
    assert other.find(name_key(before)) is None and other.find(name_key(new)) == new


def test_without_the_fabrics_key_nothing_is_sealed_and_all_is_opened() -> None:
    keys = SealKeys.of(b"k" * 32)
    sealed = keys.seal(b"the secret", "here")
    keys.wanted = "0011"
    with pytest.raises(Unavailable, match="0011") as caught:
        keys.seal(b"the secret", "here")
    assert caught.value.token == "sealKeyMissing" and keys.unseal(sealed, "here") == b"the secret"


def test_sealed_text_opens_only_with_its_key_in_its_place_and_unchanged() -> None:
    key, other = b"k" * 32, b"o" * 32
    sealed = seal(key, b"the secret", "here")
    assert unseal(key, sealed, "here") == b"the secret" and "secret" not in sealed
    assert seal(key, b"the secret", "here") != sealed
    raw = bytearray(base64.urlsafe_b64decode(sealed))
    raw[-1] ^= 1
    changed = base64.urlsafe_b64encode(raw).decode()
    for bad in (
        (other, sealed, "here"),
        (key, sealed, "there"),
        (key, changed, "here"),
        (key, "", "here"),
        (key, "é", ""),
    ):
        with pytest.raises(Unavailable, match="another seal"):
            unseal(*bad)


def test_an_access_keys_secret_follows_from_its_id_and_the_servers_key_alone() -> None:
    key_id, other = make_key_id(), make_key_id()
    assert KEY_ID.fullmatch(key_id) and key_id != other
    secret = derive_secret(b"k" * 32, key_id)
    assert derive_secret(b"k" * 32, key_id) == secret and len(secret) == 40
    assert secret not in (derive_secret(b"k" * 32, other), derive_secret(b"o" * 32, key_id))
