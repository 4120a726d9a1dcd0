"""The contract of a store of container images offers on a node: pulled by reference, kept by digest, layers shared as
directories."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from weft.contracts.driver.container import User


class RegistryCredentials:
    """Credentials for a registry; never printed. ``token`` stands alone, in place of name and password. Those of files end in a
    line break, which is none of theirs."""

    def __init__(self, username: str = "", password: str = "", token: str = "") -> None:
        self.username, self.password, self.token = (one.rstrip("\r\n") for one in (username, password, token))

    def __repr__(self) -> str:
        return "RegistryCredentials(…)"


class OciConfig(msgspec.Struct, frozen=True):
    """How an image's configuration says that it is run."""

    entrypoint: list[str] = []
    cmd: list[str] = []
    env: list[str] = []  # NAME=VALUE
    user: str = ""  # by name or number, USER[:GROUP]
    workdir: str = ""
    stop_signal: str = ""
    exposed_ports: list[str] = []  # like 80/tcp
    volumes: list[str] = []  # paths
    labels: dict[str, str] = {}


class OciImage(msgspec.Struct, frozen=True):
    """An image that is here, whole, for this node's platform."""

    reference: str
    digest: str  # sha256:… of its manifest
    config: OciConfig
    layers: list[str]  # digests of its unpacked layers, the lowest first
    size_bytes: int  # of all layers on disk
    index_digest: str = ""  # of the index it was chosen from, if there was one


PullProgress = Callable[[int, int], None]  # bytes that are here, and of how many in all (0: not known yet)


class OciStore(Protocol):
    async def pull(
        self,
        reference: str,
        digest: str = "",
        *,
        credentials: RegistryCredentials | None = None,
        progress: PullProgress | None = None,
        own_file: bool = False,
    ) -> OciImage:
        """The image that ``reference`` names, fetched as far as it isn't here; with ``digest`` (of its manifest or index) that one
        and no other, and if it is here nobody is asked whose credentials opened it here before. Pulls of one image, or layer, at
        once are one. Cancelled or killed half-way: nothing half-done is ever seen. ``own_file``: the archive
        that is named is the node's own, and needn't be one that everybody may read. Raises NotFound (``imageGone``,
        ``noSuchPlatform``), NotAuthenticated, Forbidden, InvalidInput (a reference that is none; ``badImage``, ``badLayer``,
        ``hostileLayer``), TooLarge (``layerTooLarge``), Unavailable (``registryUnavailable``, ``registryHangs``,
        ``registryUntrusted``), DriverFailed (``wrongDigest``, ``truncated``, ``badAnswer``, ``noSpace``)."""

    async def find(self, digest: str) -> OciImage | None:
        """The image of that digest, manifest's or index's, if it is here."""

    def root(self, image: OciImage) -> list[str]:
        """Its layers as directories of this node, the uppermost first. Nobody may write in them."""

    async def find_user(self, image: OciImage, user: str) -> User:
        """``user`` (USER[:GROUP], names or numbers, "" is root) by the image's own passwd and group files. Raises InvalidInput."""

    async def list(self) -> list[OciImage]: ...

    async def forget(self, used: Collection[str]) -> int:
        """Take away what none of the images with these digests needs, as far as the store's budget asks for it; the bytes that
        came free. What a pull under way needs stays; an image that has come counts as unused until it stands in ``used``."""
