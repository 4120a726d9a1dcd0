"""What every volume driver promises that encrypts. A driver's test subclasses ``EncryptionPromises`` and gives the fixtures of
``VolumePromises``."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conformance.volume import ID, MIB

from weft.contracts.driver.layers import HasLayers
from weft.contracts.driver.volume import CanEncrypt
from weft.objects.errors import DriverFailed, InvalidInput

KEY, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = tmp_path / "passphrase"
    path.write_text(KEY)
    return str(path)


class EncryptionPromises:
    async def test_an_encrypted_volume_is_there_once_and_says_that_it_is(self, driver: CanEncrypt, key: str) -> None:
        facts = await driver.encryption.ensure(ID, size_bytes=8 * MIB, key=key)
        assert (facts.id, facts.size_bytes, facts.encrypted) == (ID, 8 * MIB, True)
        assert await driver.encryption.ensure(ID, size_bytes=16 * MIB, key=key) == facts

    async def test_a_plain_volume_never_passes_for_an_encrypted_one(self, driver: CanEncrypt, key: str) -> None:
        plain = await driver.ensure(ID, size_bytes=8 * MIB)  # type: ignore[attr-defined]
        assert not plain.encrypted
        with pytest.raises(DriverFailed) as refused:
            await driver.encryption.ensure(ID, size_bytes=8 * MIB, key=key)
        assert refused.value.token == "notEncrypted"

    async def test_an_encrypted_volume_grows_by_its_own_key_alone(
        self, driver: CanEncrypt, key: str, tmp_path: Path
    ) -> None:
        await driver.encryption.ensure(ID, size_bytes=8 * MIB, key=key)
        (wrong := tmp_path / "wrong").write_text(OTHER)
        with pytest.raises(DriverFailed) as refused:
            await driver.encryption.grow(ID, 16 * MIB, key=str(wrong))
        assert refused.value.token == "wrongKey" and OTHER not in str(refused.value)
        assert (await driver.encryption.grow(ID, 16 * MIB, key=key)).size_bytes == 16 * MIB
        with pytest.raises(InvalidInput):
            await driver.encryption.grow(ID, 8 * MIB, key=key)

    async def test_without_a_key_nothing_is_made(self, driver: CanEncrypt, tmp_path: Path) -> None:
        with pytest.raises(DriverFailed):
            await driver.encryption.ensure(ID, size_bytes=8 * MIB, key=str(tmp_path / "none"))
        assert await driver.list() == []  # type: ignore[attr-defined]

    async def test_a_snapshot_of_an_encrypted_volume_is_refused_before_anything_is_begun(
        self, driver: CanEncrypt, key: str
    ) -> None:
        facts = await driver.encryption.ensure(ID, size_bytes=8 * MIB, key=key)
        if isinstance(driver, HasLayers):
            with pytest.raises(InvalidInput) as refused:
                await driver.layers.begin_layer(ID, "layer")
            assert refused.value.token == "unsupported"
            assert await driver.list() == [facts]  # type: ignore[attr-defined]
            assert await driver.layers.list_layers(ID) == []
