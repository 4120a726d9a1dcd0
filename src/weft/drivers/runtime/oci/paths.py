"""Places of one container's files: what outlives a reboot in the node's state folder, the rest in its run folder."""

from __future__ import annotations

from pathlib import Path

import msgspec


class SavedPaths(msgspec.Struct, frozen=True):
    """Paths of a container whose processes were saved as they ran."""

    run: Path
    state: Path

    @property
    def whole(self) -> Path:
        """Its processes, as CRIU wrote them: there as soon as all of it is, and the container has ended by it."""
        return self.state / "saved"

    @property
    def begun(self) -> Path:
        """The same while it is being written."""
        return self.state / "saving"

    @property
    def resuming(self) -> Path:
        """The same while it is being restored: from then on it no longer counts as saved."""
        return self.state / "resuming"

    @property
    def carried(self) -> Path:
        """All of it, on its way to another node or from one."""
        return self.state / "carried.tar"

    @property
    def words(self) -> Path:
        """CRIU's configuration, beside the runtime's own options."""
        return self.run / "criu.conf"


class ContainerPaths(msgspec.Struct, frozen=True):
    """``run`` is the bundle, whose path stands on the command lines of shim and runtime."""

    run: Path
    state: Path

    @property
    def record(self) -> Path:
        return self.state / "container.json"

    @property
    def upper(self) -> Path:
        """The folder with what the container has written into its root, if that is no ``disk``."""
        return self.state / "root" / "upper"

    @property
    def disk(self) -> Path:
        """A raw file with a file system, on which lies what it has written."""
        return self.state / "root.ext4"

    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def config(self) -> Path:
        return self.run / "config.json"

    @property
    def pid(self) -> Path:
        return self.run / "pid"

    @property
    def shim_pid(self) -> Path:
        return self.run / "shim-pid"

    @property
    def begun(self) -> Path:
        """The file that names the running processes, as long as the record doesn't have them."""
        return self.run / "begun.json"

    @property
    def exits(self) -> Path:
        """The folder of the shim's exit file, which bears the container's id."""
        return self.run / "exits"

    @property
    def shim_log(self) -> Path:
        return self.state / "shim.log"

    @property
    def control(self) -> Path:
        """The shim's fifo for orders."""
        return self.run / "ctl"

    @property
    def saved(self) -> SavedPaths:
        return SavedPaths(run=self.run, state=self.state)

    @property
    def root(self) -> Path:
        """The mount point of the root, in the shim's own mount namespace only; for everyone else an empty folder."""
        return self.run / "rootfs"

    @property
    def mounts(self) -> Path:
        """The folder in which layers and volumes are mounted with shifted ids, in the shim's own mount namespace only."""
        return self.run / "m"

    @property
    def files(self) -> Path:
        """hosts, hostname and resolv.conf, as the container sees them."""
        return self.run / "etc"
