"""How a backup is verified: what is requested, what became of it, and what a boot of it has made meanwhile. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.fields.cells import dig
from weft.kinds.record import Goal, Object
from weft.objects.errors import DriverFailed, InvalidInput, WeftError
from weft.objects.schema import field

DAMAGED, VERIFY_FAILED = "damaged", "verifyFailed"
FAILED = "failed"  # the state of a backup that was booted, and failed
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_STORED_AGAIN = ("pack ", "chunk ", "index ")  # what a new backup stores again; an index here is a disk's
How = Literal["read", "boot"]
WITHIN_SECONDS, LEAST_WITHIN, MOST_WITHIN = 300.0, 1.0, 3600.0
MOST_CHECK = 4096

Check = Annotated[
    str, field("Command for the guest's shell; exit code 0 is good; unset: the guest answers", max_length=MOST_CHECK)
]
Within = Annotated[float, field("Time the guest has to become healthy after it starts", quantity="period")]


class BackupVerification(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The last verification that has ended."""

    generation: int = 0
    how: Literal["", "read", "boot"] = ""  # "": none has ended
    at: float = 0.0  # unix seconds
    # undone: it could not be made, which says nothing of the backup
    result: Literal["", "passed", "damaged", "failed", "undone"] = ""
    boot_seconds: float = 0.0  # from the guest's start until it was good
    damaged: list[str] = []  # the damaged parts by name, at most 20
    reason: str = ""
    message: str = ""


class BackupTest(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A boot of a backup that is under way: what was made for it has ``name``, and goes once ``has_ended``."""

    name: str
    generation: int
    began_at: float  # unix seconds
    has_ended: bool = False


class VerifyBackupInput(msgspec.Struct, kw_only=True):
    boot: Annotated[bool, field("Boot a VM from it, too, in a network of its own, and remove it again")] = False
    check: Check = ""
    within: Within = WITHIN_SECONDS


def check_request(check: str, within: float, boots: bool, at: str) -> None:
    """Raises InvalidInput. ``at``: before the names of the fields."""
    if check and not boots:
        raise InvalidInput(
            f"{at}check: a command runs only in a VM that is booted",
            field=f"{at}check",
            hint="set verify to boot, too" if at else "give --boot, too",
        )
    if not LEAST_WITHIN <= within <= MOST_WITHIN:
        raise InvalidInput(f"{at}within: {within:g} s is out of range", field=f"{at}within", hint="give 1s to 1h")


def read_hours(hours: str, at: str = "hours") -> tuple[int, int]:
    """``01:00-05:00`` as minutes of a day; one that ends before it begins goes over midnight. Raises InvalidInput."""
    found = _HOURS.fullmatch(hours)
    begin, end = (int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])) if found else (0, 0)
    if begin == end:
        raise InvalidInput(
            f"{at}: {hours[:40]!r} is not a range of hours", field=at, hint="write them like 01:00-05:00"
        )
    return begin, end


def has_ended(obj: Object) -> bool:
    """Whether the last verification that was requested is over, however it went."""
    return bool(dig(obj, "status.verify.generation", 0) >= dig(obj, "actions.verify_generation", 0))


def is_verified(obj: Object | None) -> bool:
    return obj is not None and has_ended(obj) and dig(obj, "status.verify.result", "") in ("", "passed")


VERIFIED = Goal(is_verified, "verified")


def find_verify_failure(obj: Object, what: str) -> WeftError | None:
    """Why its last verification, if that is over, has found no good backup."""
    if not has_ended(obj):
        return None
    verify: dict[str, Any] = dig(obj, "status.verify", {})
    message = verify.get("message", "")
    match verify.get("result", ""):
        case "damaged":
            parts = verify.get("damaged", [])
            again = "make a new backup: it stores again what is damaged, which mends this one, too, where the data is the same"
            lost = f"restore another one: its manifest is lost or damaged: put that back from a copy, or: weft delete {what}"
            return DriverFailed(
                f"{what} is damaged: {', '.join(parts) or message}",
                reason="backupDamaged",
                hint=again if all(one.startswith(_STORED_AGAIN) for one in parts) else lost,
            )
        case "failed":
            return DriverFailed(
                f"{what} was booted, and failed: {message}",
                reason=verify.get("reason") or "bootFailed",
                hint=f"look yourself: weft backup restore {obj['name']} --new-name NAME",
            )
        case "undone":
            return DriverFailed(
                f"{what} is not verified: {message}", reason=VERIFY_FAILED, hint=f"weft backup verify {obj['name']}"
            )
    return None
