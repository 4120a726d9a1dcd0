"""An image's source, as the store sees it, and the errors for its failures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from weft.drivers.image.oci.documents import Descriptor
from weft.drivers.image.oci.fetch.exchange import Broken
from weft.objects.errors import DriverFailed, NotAuthenticated, NotFound, Unavailable, WeftError

PASSING = ("connect", "cut", "hangs", "ended", "busy")  # kinds of Broken that another try may mend


class Source(Protocol):
    """One image's place. All raise Broken, and the errors of ``OciStore.pull``."""

    where: str  # for messages

    async def look_up(self, tag: str) -> str:
        """The digest that ``tag`` stands for now; "" if the source only answers with the document."""

    async def document(self, name: str) -> tuple[bytes, str]:
        """The index or manifest of that tag or digest, and its media type; both unchecked."""

    def blob(self, descriptor: Descriptor, offset: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Its bytes from ``offset`` on, unchecked."""

    async def close(self) -> None: ...


def explain(problem: Broken, where: str, *, arrived: int = 0, wanted: int = 0) -> WeftError:
    """The error for a caller. ``arrived`` of ``wanted`` bytes were here."""
    if problem.kind in ("cut", "ended") and arrived:
        return DriverFailed(
            f"{where} closed the connection after {arrived} of {wanted} bytes of a layer, at every attempt",
            reason="truncated",
            hint="push the image again if that goes on",
            details={"step": "image"},
        )
    if problem.kind == "hangs":
        return Unavailable(
            f"{where} is not responding: {problem.message}",
            reason="registryHangs",
            hint="check the registry; the node tries again later",
        )
    if problem.kind == "tls":
        return Unavailable(
            f"{where} can't be trusted: {problem.message}",
            reason="registryUntrusted",
            hint="add the registry's CA to the cluster's configuration; plain http must be allowed there, too",
        )
    if problem.kind == "gone":
        return NotFound(f"{where}: {problem.message}", reason="imageGone")
    if problem.kind == "denied":
        return NotAuthenticated(f"{where}: {problem.message}", hint="if the file is not secret, chmod o+r")
    if problem.kind == "badAnswer":
        return DriverFailed(
            f"{where} sends an invalid answer: {problem.message}", reason="badAnswer", details={"step": "image"}
        )
    return Unavailable(f"{where} can't be reached: {problem.message}", reason="registryUnavailable")
