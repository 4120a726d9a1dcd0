"""Templates: a machine that has booted once, in two files, from which any number of machines begin instead of booting.

A machine that begins from one shares the template's RAM and has its own copy of what it writes. Its disk stands on the template's,
and its plan has the template's shape (``GuestPlan.memory`` and ``.ram`` name the files): what is wanted otherwise is for
``adjust``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from weft.contracts.driver.runtime import GuestPlan

STATE, RAM = "STATE", "RAM"  # a template's files in its folder
CONSOLE = "CONSOLE"  # and the end of what it printed as it booted


class Templates(Protocol):
    async def identify(self, plan: GuestPlan) -> str:
        """A digest of all that a template of this plan depends on: equal ones are the same machine. Raises DriverFailed."""

    async def make(self, plan: GuestPlan, folder: Path) -> None:
        """Boot the plan's guest, let it come to rest, and save it into ``folder``, which is empty; the guest has ended when this
        returns, or raises. Its disk then is the template's. Raises DriverFailed."""

    async def clear(self, prefix: str) -> None:
        """End and forget the guests whose names begin so: a process of ours that died was making templates of them."""


@runtime_checkable
class CanTemplate(Protocol):
    templates: Templates
