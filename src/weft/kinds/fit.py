"""Whether a VM's place still is what the VM asks for, and when it may be changed to be. Pure.

What changes only with a fresh start (cpu, memory, machine, firmware, iso, screen, networks, volumes) reaches the
place together with the wish for that start: the scheduler then writes both, as it alone knows whether there is room.
"""

from __future__ import annotations

from weft.kinds.allocation import AllocationSpec
from weft.kinds.nic import are_plugged
from weft.kinds.vm import VmSpec


def is_fitting(place: AllocationSpec, wish: VmSpec) -> bool:
    """Whether the place has what is asked for."""
    return (
        place.resources.cpu == wish.cpu
        and place.resources.memory == wish.memory
        and (place.machine, place.firmware, place.screen) == (wish.machine, wish.firmware, wish.screen)
        and (place.iso.name if place.iso else None) == wish.iso
        and are_plugged(place.nics, wish.networks)
        and [volume.name for volume in place.volumes] == wish.volumes
    )


def wants_refit(place: AllocationSpec, wish: VmSpec) -> bool:
    """Whether a fresh start is asked for of a place that isn't as asked for."""
    fresh = wish.run == "run" and (place.wish == "stop" or wish.boots > place.boots)
    return fresh and not is_fitting(place, wish)
