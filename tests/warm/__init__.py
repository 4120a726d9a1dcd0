"""Guests of tests start from a kernel that has booted: most of an emulated boot is the kernel's, the same each time.

``start.py`` stands in QEMU's place on the PATH. Asked for a machine whose like has been saved, it starts QEMU with that
machine's memory instead of an empty one; the guest goes on in the first instruction of PID 1, before a driver has seen
a device, so each guest finds its own disks, addresses and name. ``snapshots.py`` boots one machine of each kind that was
asked for, and saves it. ``barrier.c`` is what such a machine waits in.

Whatever it doesn't know it leaves to QEMU as it is. ``WEFT_COLD=1`` turns it off: then every guest boots.
"""
