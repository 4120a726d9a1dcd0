"""A guest that stands still can't shut itself down: nobody waits for it."""

from __future__ import annotations

import pytest

from weft.drivers.runtime.qemu.guest import STANDS_STILL, Guest


class Asked(Exception):
    """Something in the guest was asked."""


class Agents:
    power_off_wanted = False

    def power_off(self) -> bool:
        raise Asked


@pytest.mark.parametrize("status", [*STANDS_STILL, "running"])
async def test_only_what_runs_is_asked_to_shut_down(status: str) -> None:
    guest = object.__new__(Guest)
    guest.status, guest.agents = status, Agents()  # type: ignore[assignment]
    if status == "running":
        with pytest.raises(Asked):
            await guest.power_off(3600.0)
    else:
        await guest.power_off(3600.0)
