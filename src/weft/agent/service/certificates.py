"""The certificates of HTTP services that this node speaks TLS for, with their keys: asked of the server, and kept in files that
only root reads, so that a node that starts without a server has them. A generated one is renewed long before it ends; a file goes
with its service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path

import msgspec

from weft.agent.server.client import Server
from weft.agent.state.service import ServedAddress
from weft.contracts.clock import Clock
from weft.contracts.durable_file import write_durably
from weft.objects.errors import Unavailable
from weft.protocol.report import CertificateInput

log = logging.getLogger("weft.agent")
RENEW_SECONDS = 30 * 86_400.0  # before its end
RETRY_SECONDS = 60.0


class KeptCertificate(msgspec.Struct):
    which: str  # as the service names it
    pem: str
    ends: float  # unix seconds; 0: it isn't renewed

    def __repr__(self) -> str:
        return f"KeptCertificate({self.which!r}, …)"


class Certificates:
    def __init__(self, state_dir: str, node: str, server: Server, clock: Clock) -> None:
        self._folder = Path(state_dir) / "service-certificates"
        self._node, self._server, self._clock = node, server, clock
        self._kept: dict[str, KeptCertificate] = {}  # by the service's uid
        self._tried: dict[str, float] = {}  # when a renewal failed

    async def open(self, served: ServedAddress) -> str:
        """Key and certificate in PEM; "" for a service without TLS. While the server can't be reached, the last one. Raises
        NotFound, Forbidden, Unavailable, OSError."""
        if not served.certificate:
            return ""
        kept = self._kept.get(served.uid) or await asyncio.to_thread(self._load, served.uid)
        if kept is not None and kept.which == served.certificate and not self._is_due(served.uid, kept):
            self._kept[served.uid] = kept
            return kept.pem
        asked = CertificateInput(served.project, served.name, served.uid)
        try:
            opened = await asyncio.to_thread(self._server.read_certificate, self._node, asked)
        except Unavailable:
            if kept is None:
                raise
            self._tried[served.uid] = self._clock.elapsed()
            return kept.pem
        kept = self._kept[served.uid] = KeptCertificate(served.certificate, opened.pem, opened.ends)
        await asyncio.to_thread(self._save, served.uid, kept)
        return kept.pem

    async def keep_only(self, services: Collection[str]) -> None:
        """Forget those of other services than these uids."""
        for uid in [uid for uid in self._kept if uid not in services]:
            del self._kept[uid]
        await asyncio.to_thread(self._drop_others, frozenset(services))

    def _is_due(self, uid: str, kept: KeptCertificate) -> bool:
        if not kept.ends or self._clock.now() < kept.ends - RENEW_SECONDS:
            return False
        return self._clock.elapsed() - self._tried.get(uid, -RETRY_SECONDS) >= RETRY_SECONDS

    def _path(self, uid: str) -> Path:
        return self._folder / f"{uid}.json"

    def _load(self, uid: str) -> KeptCertificate | None:
        try:
            return msgspec.json.decode(self._path(uid).read_bytes(), type=KeptCertificate)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError):
            log.warning("the certificate of service %s can't be read; another is fetched", uid)
            return None

    def _save(self, uid: str, kept: KeptCertificate) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self._path(uid), msgspec.json.encode(kept))

    def _drop_others(self, services: frozenset[str]) -> None:
        for path in self._folder.glob("*.json"):
            if path.stem not in services:
                path.unlink(missing_ok=True)
