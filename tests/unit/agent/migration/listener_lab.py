"""Two nodes of one fabric and a stranger's, for tests of what they say to each other: folders with keys and certificates."""

from __future__ import annotations

from pathlib import Path

from tests.node_key import make_node_key

from weft.agent.migration.credentials import Credentials
from weft.contracts.clock import SystemClock
from weft.trust.ca import Authority, read_csr


class Fabric:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = Authority(folder / "server", SystemClock())

    @property
    def ca(self) -> str:
        return self._authority.ca

    def node(self, uid: str) -> Credentials:
        """The credentials of node ``uid``, made if they aren't there."""
        folder = self._folder / uid
        folder.mkdir(parents=True, exist_ok=True)
        certificate = self._authority.sign_node(read_csr(make_node_key(folder / "node.key")), uid)
        (folder / "node.crt").write_text(certificate)
        (folder / "ca.crt").write_text(self._authority.ca)
        return Credentials(str(folder))
