"""Power of a node's machine: where its BMC is, what people order, and what the BMC said."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from weft.kinds.fields.cells import dig
from weft.kinds.record import Goal, Object
from weft.kinds.secret import SealedSpec
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, WeftError
from weft.objects.identity import is_name, split_named
from weft.objects.schema import field

USER, PASSWORD, FINGERPRINT = "user", "password", "fingerprint"  # keys of the secret
_PORTS = {"redfish": 443, "ipmi": 623}
_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?|\[[0-9a-fA-F:.]{2,45}\])"
_ADDRESS = re.compile(rf"(redfish|ipmi)://({_HOST})(?::(\d{{1,5}}))?(/redfish/v1/Systems/[A-Za-z0-9._~-]{{1,100}})?/?")
_SHAPES = "write redfish://HOST[:PORT][/redfish/v1/Systems/ID] or ipmi://HOST[:PORT]"
PowerOrder = Literal["status", "off", "on", "cycle"]


class BmcAddress(NamedTuple):
    protocol: str  # redfish or ipmi
    host: str
    port: int
    path: str = ""  # of the machine; "": the only one that the BMC has


class PowerReading(msgspec.Struct, frozen=True, kw_only=True):
    """The last word of a node's BMC."""

    state: Annotated[Literal["unknown", "on", "off"], field("What it said; unknown: it didn't say it")] = "unknown"
    at: Annotated[float, field("When it was asked", quantity="moment")] = 0.0
    off_at: Annotated[
        float | None, field("When it last said off: nothing that ran before then runs any more", quantity="moment")
    ] = None
    off_contact: Annotated[str, field("The contact in its node's report at that time")] = ""
    proved: Annotated[
        str, field("Address of the BMC that said on while the node was heard: only the word off of such a one counts")
    ] = ""
    orders: Annotated[int, field("How many orders were carried out, or failed", ge=0)] = 0
    reason: Annotated[str, field("Reason of the failure")] = ""
    message: Annotated[str, field("What failed; empty: nothing")] = ""


def is_off(reading: PowerReading | None, contact: str, address: str) -> bool:
    """Whether a machine was off since its agent took the ``contact`` of its node's report: nothing of that time runs any more. The
    BMC at ``address`` must be the machine's own, as far as can be seen: it has said on while the node was heard."""
    if reading is None or reading.state != "off" or reading.proved != address:
        return False
    return bool(contact) and reading.off_contact == contact


class PowerInput(msgspec.Struct):
    to: Annotated[PowerOrder, field("status only asks the BMC; cycle is off, then on")] = "status"
    force: Annotated[bool, field("Switch off a node that is ready, whatever runs there")] = False


def read_bmc_address(url: str) -> BmcAddress:
    """Raises InvalidInput."""
    found = _ADDRESS.fullmatch(url)
    port = int(found[3] or _PORTS[found[1]]) if found else 0
    if found is None or not 0 < port < 65536 or (found[1] == "ipmi" and found[4]):
        # without the URL, since people may have put a password there
        hint = f"{_SHAPES}; user and password are values of the secret" if "@" in url else _SHAPES
        raise InvalidInput("spec.power: this isn't the address of a BMC", field="spec.power", hint=hint)
    return BmcAddress(found[1], found[2].strip("[]"), port, found[4] or "")


def check_power(url: str, secret: str) -> None:
    """Raises InvalidInput."""
    if not url and not secret:
        return
    if url:
        read_bmc_address(url)
    if not url or not secret:
        missing = "power" if not url else "power_secret"
        raise InvalidInput(
            f"spec.{missing} is missing: a BMC takes an address and a secret",
            field=f"spec.{missing}",
            hint="weft node set NAME --power redfish://HOST --power-secret PROJECT/SECRET",
        )
    project, slash, name = secret.partition("/")
    if not slash or not is_name(project) or not is_name(name):
        raise InvalidInput(
            f"spec.power_secret: {secret[:80]!r} isn't a secret",
            field="spec.power_secret",
            hint=f"write PROJECT/NAME of a secret with the values {USER} and {PASSWORD}",
        )


def list_secrets(spec: Any) -> list[str]:
    """The secret that a node's spec names, as PROJECT/NAME."""
    return [spec.power_secret] if spec.power_secret else []


def check_secret_of_bmc(_: Any, named: str, secret: SealedSpec, __: str | None) -> None:
    """Raises InvalidInput for a secret without the user or the password of a BMC."""
    if missing := [key for key in (USER, PASSWORD) if key not in secret.sealed]:
        project, name = split_named(None, named)
        raise InvalidInput(
            f"spec.power_secret: secret {named} has no {' and no '.join(missing)}",
            field="spec.power_secret",
            hint=f"weft secret set {name} -p {project} --value {USER}=USER --password-stdin",
        )


def order_power(obj: Object, given: PowerInput) -> dict[str, Any]:
    """The actions that the verb sets. Raises IllegalTransition."""
    name = dig(obj, "name", "")
    if not dig(obj, "spec.power", ""):
        raise IllegalTransition(
            f"node/{name} has no BMC",
            hint=f"weft node set {name} --power redfish://HOST --power-secret PROJECT/SECRET",
        )
    runs, ready = dig(obj, "status.allocations", 0), dig(obj, "status.phase", "") == "Ready"
    if given.to in ("off", "cycle") and ready and runs and not given.force:
        raise IllegalTransition(
            f"node/{name} is ready and has {runs} workload{'s' if runs != 1 else ''}",
            hint=f"weft node drain {name} first; --force switches it off all the same",
        )
    number = dig(obj, "actions.power_orders", 0) + 1
    return {"power_to": given.to, "power_orders": number, "power_ordered_at": obj["now"]}


def find_power_rights(old: Any, new: Any) -> Iterable[tuple[str, str]]:
    """Rights of who names a secret: its values are sent to an address of their choice."""
    named = new.power_secret and (old is None or (old.power, old.power_secret) != (new.power, new.power_secret))
    return [("secret:update", "use a secret at a BMC")] if named else []


def _is_carried_out(obj: Object | None) -> bool:
    done, ordered = dig(obj or {}, "marks.power_reading.orders", 0), dig(obj or {}, "actions.power_orders", 0)
    return obj is not None and bool(done >= ordered) and not dig(obj, "marks.power_reading.message", "")


def find_power_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """The error of an order that failed, for the command that waits for it."""
    if goal.words != SWITCHED.words or dig(obj, "marks.power_reading.orders", 0) < dig(obj, "actions.power_orders", 0):
        return None
    message = dig(obj, "marks.power_reading.message", "")
    return DriverFailed(f"{what}: {message}", reason="powerUnknown") if message else None


def _answer(obj: Object) -> str:
    return f"power is {dig(obj, 'marks.power_reading.state', 'unknown')}"


def describe_node_progress(obj: Object) -> str:
    """Describe the order that is carried out, beside the node's phase."""
    if dig(obj, "marks.power_reading.orders", 0) < dig(obj, "actions.power_orders", 0):
        return f"its BMC is asked: power {dig(obj, 'actions.power_to', 'status')}"
    return str(dig(obj, "status.message", ""))


SWITCHED = Goal(_is_carried_out, "switched", ends_refused=False, answer=_answer)
