"""A repository's key: 32 random bytes, and what is derived from them. Who has it reads everything; without it nothing is read."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from weft.objects.errors import InvalidInput

_PREFIX = "weft-backup-key-1:"
_BYTES = 32
_CHECK_BYTES = 4  # of a checksum, so that a key typed wrong is told from a key of another repository
_NONCE_BYTES = 12
SEALED_EXTRA = _NONCE_BYTES + 16  # by which sealed bytes are longer


class RepositoryKey:
    """The secret; ``text`` is its form for files and safes."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def generate(cls) -> RepositoryKey:
        return cls(secrets.token_bytes(_BYTES))

    @classmethod
    def parse(cls, text: str) -> RepositoryKey:
        """The key that ``text`` is. Raises InvalidInput if it is none or was copied wrong."""
        try:
            if not text.strip().startswith(_PREFIX):
                raise ValueError("prefix")
            raw = base64.b64decode(text.strip().removeprefix(_PREFIX), altchars=b"-_", validate=True)
            secret, check = raw[:_BYTES], raw[_BYTES:]
            if len(secret) != _BYTES or check != _checksum(secret):
                raise ValueError("checksum")
        except (ValueError, binascii.Error):
            raise InvalidInput(
                "this is not the key of a backup repository, or not all of it",
                field="key",
                hint=f"it is one line that begins with {_PREFIX}; copy it whole",
            ) from None
        return cls(secret)

    @property
    def text(self) -> str:
        return _PREFIX + base64.urlsafe_b64encode(self._secret + _checksum(self._secret)).decode()

    def keys_of(self, repository: str) -> Keys:
        """The keys for the repository with this id."""
        return Keys(hmac.digest(self._secret, b"weft-backup 1\0" + repository.encode(), "sha256"))


class Keys:
    """The working keys of one repository: each purpose and each pack has its own."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self.fingerprint = self._derive("fingerprint")[:16].hex()
        self._mac_key = self._derive("mac")
        self._chunk = hmac.new(self._derive("chunk id"), digestmod="sha256")
        self._node = hmac.new(self._derive("node id"), digestmod="sha256")

    def chunk_id(self, plain: bytes | memoryview) -> bytes:
        """HMAC-SHA256 of a chunk, keyed, so that nobody without the key can test for known content. Any thread."""
        return _keyed(self._chunk, plain)

    def node_id(self, plain: bytes) -> bytes:
        """The same for a node of an index: no disk can hold a chunk that is taken for a node."""
        return _keyed(self._node, plain)

    def mac(self, purpose: str, *parts: bytes) -> bytes:
        """HMAC-SHA256 over ``purpose`` and ``parts``, each with its length before it."""
        keyed = hmac.new(self._mac_key, digestmod="sha256")
        for part in (purpose.encode(), *parts):
            keyed.update(len(part).to_bytes(8, "big"))
            keyed.update(part)
        return keyed.digest()

    def seal(self, place: str, plain: bytes, aad: bytes = b"") -> bytes:
        """nonce ‖ AES-256-GCM(plain), readable at this ``place`` (a pack, a backup) with this ``aad`` only."""
        return b"".join(self.seal_parts(place, plain, aad))

    def seal_parts(self, place: str, plain: bytes, aad: bytes) -> tuple[bytes, bytes]:
        """The same in two parts, for who writes them anyway: the nonce, and the rest."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce, AESGCM(self._derive(f"seal {place}")).encrypt(nonce, plain, aad)

    def unseal(self, place: str, sealed: bytes | memoryview, aad: bytes = b"") -> bytes:
        """Unseal what was sealed. Raises cryptography's InvalidTag if a bit of it, its place or ``aad`` differs."""
        return AESGCM(self._derive(f"seal {place}")).decrypt(
            sealed[:_NONCE_BYTES], memoryview(sealed)[_NONCE_BYTES:], aad
        )

    def _derive(self, purpose: str) -> bytes:
        return hmac.digest(self._root, purpose.encode(), "sha256")


def _checksum(secret: bytes) -> bytes:
    return hashlib.sha256(_PREFIX.encode() + secret).digest()[:_CHECK_BYTES]


def _keyed(start: hmac.HMAC, plain: bytes | memoryview) -> bytes:
    hashed = start.copy()
    hashed.update(plain)
    return hashed.digest()
