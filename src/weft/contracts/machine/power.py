"""The power contract: what a machine's BMC says and does. A BMC has its own processor, and answers while the machine hangs; most
of them are without power when the machine is. Everything here blocks, for no longer than half a minute."""

from __future__ import annotations

from typing import Literal, Protocol

PowerState = Literal["on", "off"]


class PowerDriver(Protocol):
    def read(self) -> PowerState:
        """State that the BMC reports now; on: also a machine that is just being switched. Raises Unavailable if it doesn't answer,
        NotAuthenticated if it refuses the user or isn't trusted, NotFound if it has no such machine, DriverFailed for an answer
        that can't be understood."""

    def switch(self, to: PowerState) -> None:
        """Switch the machine, whatever runs on it; only ``read`` shows that it is. Raises as ``read`` does."""
