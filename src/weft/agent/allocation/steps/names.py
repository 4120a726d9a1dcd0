"""The names of the steps, by which the plan orders them; each has its record in the file of its subject."""

from __future__ import annotations

from enum import StrEnum


class StepName(StrEnum):
    """Each may be repeated at any time; its input is in the allocation."""

    FETCH = "fetch"  # the image into the node's cache, long before it is needed
    IMAGE = "image"  # fetch the image, or find it in the cache
    DISK = "disk"  # clone the root disk from it
    VOLUMES = "volumes"
    SEED = "seed"  # the disk with user data
    NETWORK = "network"  # segments and taps
    START = "start"  # or resume, or adopt
    ADJUST = "adjust"  # CPUs, memory, disks and NICs of the running guest
    TIDY = "tidy"  # remove taps of NICs that the guest has no more
    HOLD = "hold"  # a guest that is ready before its lease begins
    GO = "go"  # let it run
    STOP = "stop"
    END = "end"  # stop an unhealthy guest, as if it had ended by itself
    SUSPEND = "suspend"
    SAVE = "save"  # suspend a guest that resumes on another node
    REMOVE = "remove"  # the runtime forgets the guest and its saved memory
    UNPLUG = "unplug"  # taps, and segments that nothing here uses any more
    KEEP_DISK = "keep-disk"  # the root disk of a guest that was placed elsewhere, as a volume
    REMOVE_DISKS = "remove-disks"  # root disk and seed; volumes stay
    CHECK_VOLUMES = "check-volumes"  # of a target: none of their data may be here
    OPEN = "open"  # the target's listener
    SEND = "send"  # the guest to the target
    GIVE_UP = "give-up"  # the target's wait for the guest
    LEAVE = "leave"  # the source's end of a migration that succeeded
    CANCEL = "cancel"  # the source's migration: the guest stays
    SETTLE = "settle"  # the target's end of a migration that succeeded
    RELOCATE = "relocate"  # a disk to another pool
    KEEP_VOLUMES = "keep-volumes"  # the same of volumes that went on elsewhere from an earlier state
    REMOVE_VOLUMES = "remove-volumes"  # data that is on the other node of a migration
    SNAPSHOT = "snapshot"  # take the next one, or go on with the one that is being taken
    CHECK_ORIGIN = "check-origin"  # that the snapshot is here to which it goes back
    RESTORE = "restore"  # its disks to a snapshot, in place
    FORGET = "forget"  # remove the checkpoint
