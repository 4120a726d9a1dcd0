"""The server's objects as the gateway uses them: what it needs of each, and which devices a rule watches. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from weft.contracts.edge.model_runner import ModelFile
from weft.edge.device.model import Device, Model
from weft.edge.model.engine import DecisionModel, DecisionOutcome, Fallback
from weft.edge.rule.engine import Effect, Rule

KINDS = ("device", "devicemodel", "rule", "model")


class _DeviceSpec(msgspec.Struct):
    node: str = ""
    model: str = ""
    protocol: str = "mqtt"
    address: str = ""
    credentials: str = ""
    poll_seconds: float = 0.0
    approved: bool = True
    desired: dict[str, bool | int | float | str] = {}
    desired_until: dict[str, float] = {}  # as servers of before keep it


class _DeviceActions(msgspec.Struct):
    desired_until: dict[str, float] = {}


class _Selector(msgspec.Struct):
    model: str = ""
    labels: dict[str, str] = {}


class _RuleSpec(msgspec.Struct):
    when: str
    node: str = ""
    devices: _Selector = msgspec.field(default_factory=_Selector)
    for_seconds: float = 0.0
    cooldown_seconds: float = 60.0
    then: tuple[Effect, ...] = ()


class _ModelSpec(msgspec.Struct):
    file: str
    inputs: tuple[str, ...]
    result: DecisionOutcome
    node: str = ""
    devices: _Selector = msgspec.field(default_factory=_Selector)
    fallback: Fallback = Fallback()
    deadline_ms: float = 8.0


class _Head(msgspec.Struct):
    name: str
    uid: str
    project: str = "default"
    labels: dict[str, str] = {}
    spec: msgspec.Raw = msgspec.Raw(b"{}")
    actions: msgspec.Raw = msgspec.Raw(b"{}")
    deleting_since: float | None = None


_head = msgspec.json.Decoder(_Head)
_device = msgspec.json.Decoder(_DeviceSpec, strict=False)
_device_actions = msgspec.json.Decoder(_DeviceActions, strict=False)
_model = msgspec.json.Decoder(Model, strict=False)
_rule = msgspec.json.Decoder(_RuleSpec, strict=False)
_decision_model = msgspec.json.Decoder(_ModelSpec, strict=False)


class GatewayObjects(msgspec.Struct):
    """All that the gateway works by. ``rules``: each with the devices (uids) that it watches. ``decision_models``: each with those
    that it decides for; where its file is, is still open."""

    devices: dict[str, Device] = {}
    models: dict[tuple[str, str], Model] = {}
    rules: dict[str, tuple[Rule, list[str]]] = {}
    decision_models: dict[str, tuple[DecisionModel, list[str]]] = {}
    unread: int = 0  # objects that this version can't read


def read_key(raw: bytes) -> tuple[str, str]:
    """Project and name of an object. Raises msgspec.DecodeError."""
    head = _head.decode(raw)
    return head.project, head.name


def read_objects(
    devices: Iterable[bytes],
    models: Iterable[bytes],
    rules: Iterable[bytes],
    node: str,
    project: str = "",
    decision_models: Iterable[bytes] = (),
) -> GatewayObjects:
    """The objects (JSON) as ``node``'s gateway uses them. Left out: devices that nobody approved, those of another project than
    the one whose devices it takes ("": not known yet), what is deleted."""
    wanted = GatewayObjects()
    for raw in models:
        try:
            head = _head.decode(raw)
            wanted.models[head.project, head.name] = _model.decode(head.spec)
        except (msgspec.DecodeError, UnicodeDecodeError):
            wanted.unread += 1
    for raw in devices:
        try:
            head = _head.decode(raw)
            spec, times = _device.decode(head.spec), _device_actions.decode(head.actions)
        except (msgspec.DecodeError, UnicodeDecodeError):
            wanted.unread += 1
            continue
        is_taken = project in ("", head.project)
        if spec.approved and is_taken and spec.node == node and head.deleting_since is None:
            wanted.devices[head.uid] = Device(
                head.uid,
                head.project,
                head.name,
                spec.model,
                spec.protocol,
                spec.address,
                spec.poll_seconds,
                spec.credentials,
                head.labels,
                spec.desired,
                {**spec.desired_until, **times.desired_until},
            )
    for raw in rules:
        try:
            head = _head.decode(raw)
            found = _rule.decode(head.spec)
        except (msgspec.DecodeError, UnicodeDecodeError):
            wanted.unread += 1
            continue
        if found.node in ("", node) and head.deleting_since is None:
            rule = Rule(
                head.uid, head.project, head.name, found.when, found.for_seconds, found.cooldown_seconds, found.then
            )
            chosen = choose_devices(head.project, found.devices.model, found.devices.labels, wanted.devices)
            wanted.rules[head.uid] = rule, chosen
    for raw in decision_models:
        try:
            head = _head.decode(raw)
            asked = _decision_model.decode(head.spec)
        except (msgspec.DecodeError, UnicodeDecodeError):
            wanted.unread += 1
            continue
        if asked.node in ("", node) and head.deleting_since is None:
            file = ModelFile(asked.file, len(asked.inputs), asked.result.output, asked.result.index)
            model = DecisionModel(
                head.uid,
                head.project,
                head.name,
                file,
                asked.inputs,
                asked.result,
                asked.fallback,
                asked.deadline_ms / 1000,
            )
            chosen = choose_devices(head.project, asked.devices.model, asked.devices.labels, wanted.devices)
            if chosen:  # without a device here it needs no process
                wanted.decision_models[head.uid] = model, chosen
    return wanted


def choose_devices(project: str, model: str, labels: Mapping[str, str], devices: Mapping[str, Device]) -> list[str]:
    """The uids of the project's devices of the model, if one is given, with all of the labels."""
    return sorted(
        uid
        for uid, device in devices.items()
        if device.project == project
        and model in ("", device.model)
        and all(device.labels.get(name) == value for name, value in labels.items())
    )
