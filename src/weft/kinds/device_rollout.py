"""DeviceRollout: values for all devices of a model, or those with some labels, in waves that stop where too many fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from weft.kinds.device import MOST_DESIRED_BYTES
from weft.kinds.device_model import DeviceModelSpec
from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.fields.device.affordance import Value, check_desired, check_values
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Object, Reference, Verb, keys_of
from weft.objects.envelope import take_from_spec
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.identity import check_labels
from weft.objects.schema import field, words

MOST_LABELS = 8
MOST_TIMEOUT_SECONDS = 86400.0


class DeviceRolloutSpec(msgspec.Struct, kw_only=True):
    model: Annotated[str, field("Device model of its devices", change="never", name=True)]
    labels: Annotated[
        dict[str, str], field("Labels that its devices have; none: all of the model", change="never")
    ] = {}
    set: Annotated[dict[str, Value], field("Values that their properties shall have", change="never")]
    percent: Annotated[int, field("How many of its devices are one wave, in percent", ge=1, le=100)] = 10
    max_failures: Annotated[int, field("It stops when more devices than this failed", ge=0)] = 5
    timeout_seconds: Annotated[
        float,
        field(
            "A device fails that hasn't reported the values after so long",
            quantity="duration",
            ge=1,
            le=MOST_TIMEOUT_SECONDS,
        ),
    ] = 60.0


class DeviceRolloutActions(msgspec.Struct, kw_only=True):
    resumed: Annotated[int, field("Number of times it was resumed", ge=0)] = 0


class DeviceRolloutStatus(msgspec.Struct, kw_only=True):
    """``states`` has a letter for each of ``members``: . waits, s was set, c confirmed, f failed."""

    phase: Annotated[str, words("Pending", "Progressing", "Stopped", "Done")] = "Pending"
    members: list[str] = []
    states: str = ""
    through: int = 0  # members in waves that began
    wave_at: float = 0.0  # seconds since 1970
    failures: dict[str, str] = {}  # why, by the device's name; of the first hundred
    problem: str = ""  # why it can't go on


def check_device_rollout(spec: DeviceRolloutSpec) -> None:
    """Raises InvalidInput."""
    check_labels(spec.labels, "spec.labels")
    if len(spec.labels) > MOST_LABELS:
        raise InvalidInput(
            f"spec.labels: {len(spec.labels)} labels", field="spec.labels", hint=f"give at most {MOST_LABELS}"
        )
    if not spec.set:
        raise InvalidInput("spec.set is empty", field="spec.set", hint="give values, like setpoint=4")
    check_values(spec.set, "spec.set", MOST_DESIRED_BYTES)


def _agree(spec: DeviceRolloutSpec, models: Mapping[str, DeviceModelSpec]) -> None:
    model = models.get(spec.model)
    if model is not None:
        check_desired(model.properties, spec.set, "spec.set")


def _resume(obj: Object, _: Any) -> dict[str, Any]:
    if dig(obj, "status.phase") != "Stopped":
        raise IllegalTransition(
            f"devicerollout/{obj['name']} isn't stopped", hint=f"weft devicerollout describe {obj['name']}"
        )
    return {"resumed": int(dig(obj, "actions.resumed") or 0) + 1}


ROLLOUTS_BY_MODEL = Index("device rollouts by model")


def _count(letter: str, obj: Object) -> str:
    return str(str(dig(obj, "status.states", "")).count(letter))


DEVICE_ROLLOUT = Kind(
    name="devicerollout",
    plural="devicerollouts",
    title="device rollout",
    summary="Values for many devices, in waves that stop where too many fail",
    spec=DeviceRolloutSpec,
    actions=DeviceRolloutActions,
    status=DeviceRolloutStatus,
    schema=2,
    upgrades=(take_from_spec(actions=DeviceRolloutActions),),
    indexes={ROLLOUTS_BY_MODEL: lambda item: keys_of("devicemodel", item, [item.spec(DeviceRolloutSpec).model])},
    references=(Reference("devicemodel", "spec.model", lambda spec: [spec.model], agree=_agree, blocks=False),),
    verbs=(Verb("resume", "Go on after a stop; as many devices may fail again", act=_resume, needs="write"),),
    access=Access(readers="project", status_writer="device rollouts"),
    admission=Admission(check=check_device_rollout),
    display=Display(
        topic="Devices",
        columns=(
            NAME,
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("MODEL", text("spec.model")),
            Column("WAITING", lambda obj: _count(".", obj), align="right"),
            Column("SET", lambda obj: _count("s", obj), align="right"),
            Column("CONFIRMED", lambda obj: _count("c", obj), align="right"),
            Column("FAILED", lambda obj: _count("f", obj), align="right"),
            AGE,
            Column("NOTE", text("status.problem", ""), flexible=True),
        ),
    ),
)
