"""The reboot contract: whether the machine that a service runs on should be rebooted, and how."""

from __future__ import annotations

from typing import Protocol


class MachineReboot(Protocol):
    """Reboot of this machine. Everything here blocks for moments only."""

    def find_need(self) -> str:
        """Why the machine should be rebooted, for people; "" if it needn't, or can't be from here."""

    def read_boot(self) -> str:
        """Mark of the present boot: each boot has another."""

    def begin(self) -> None:
        """Have the machine rebooted; the caller goes with it. Raises DriverFailed."""
