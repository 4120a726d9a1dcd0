"""Limit what a node's gateway for devices may read: the devices behind it, the device models that these name, the rules and models
of their projects that are for any gateway or for this one, and the files of these models."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from weft.api.context import ApiContext
from weft.contracts.store import Entry
from weft.kinds.device import DEVICE
from weft.kinds.device_model import DEVICE_MODEL
from weft.kinds.model import MODEL
from weft.kinds.node import NODE, NodeSpec, find_devices_project
from weft.kinds.record import Kind
from weft.objects.envelope import decode_envelope, decode_part
from weft.objects.identity import kind_prefix, object_key
from weft.trust.credentials import Actor
from weft.trust.enrolment import enrolment_key, read_enrolment

_PAGE = 500


class _Spec(msgspec.Struct):
    node: str = ""
    model: str = ""
    file: str = ""


class _Served(msgspec.Struct):
    name: str
    project: str = ""
    spec: _Spec = msgspec.field(default_factory=_Spec)


_decoder = msgspec.json.Decoder(_Served)


async def find_served(context: ApiContext, actor: Actor, kind: Kind) -> Callable[[bytes], bool] | None:
    """The test of a stored object for whether the node's gateway serves it or needs it; None for other actors and kinds.

    Which models and rules these are is decided whenever the gateway lists them or begins a watch, and whenever a watch of its
    devices here brings one, for all its watches at this process: it may list them at another server."""
    if actor.kind != "node" or kind.access.node_reads != "serving":
        return None
    entry = await context.store.get(enrolment_key(actor.id))
    node = read_enrolment(entry.value).name if entry is not None else ""
    if not node:
        return lambda _: False
    needed, word = context.needed_models.setdefault(actor.id, set()), node.encode()

    def is_device_for_it(value: bytes) -> bool:
        if word not in value or (found := _decoder.decode(value)).spec.node != node:
            return False
        needed.add((found.project, found.spec.model))
        return True

    if kind is DEVICE:
        return is_device_for_it
    devices = [_decoder.decode(one.value) for one in await list_devices(context, node)]
    needed.clear()
    needed |= {(one.project, one.spec.model) for one in devices}

    def is_model_for_it(value: bytes) -> bool:
        found = _decoder.decode(value)
        return (found.project, found.name) in needed

    def is_rule_for_it(value: bytes) -> bool:
        found = _decoder.decode(value)
        return found.spec.node in ("", node) and any(found.project == project for project, _ in needed)

    return is_model_for_it if kind is DEVICE_MODEL else is_rule_for_it


async def serves_file(context: ApiContext, node_uid: str, sha256: str) -> bool:
    """Whether the node's gateway has devices, and a model of their project that is for it names the file with this digest."""
    entry = await context.store.get(enrolment_key(node_uid))
    node = read_enrolment(entry.value).name if entry is not None else ""
    if not node:
        return False
    project, word = await read_devices_project(context, node), sha256.encode()
    page = await context.store.list(kind_prefix(MODEL.name, project))
    found = [_decoder.decode(one.value).spec for one in page.entries if word in one.value]
    if not any(spec.file == sha256 and spec.node in ("", node) for spec in found):
        return False
    return any(_decoder.decode(one.value).project == project for one in await list_devices(context, node))


async def read_devices_project(context: ApiContext, node: str) -> str:
    """The project whose devices the gateway of the node of this name takes."""
    entry = await context.store.get(object_key(NODE.name, None, node))
    return find_devices_project(
        decode_part(decode_envelope(entry.value).spec, NodeSpec) if entry is not None else NodeSpec()
    )


async def list_devices(context: ApiContext, node: str) -> list[Entry]:
    """The stored devices behind the gateway of the node of this name."""
    word, after, found = node.encode(), None, list[Entry]()
    while True:
        page = await context.store.list(kind_prefix(DEVICE.name), limit=_PAGE, after=after)
        found += [one for one in page.entries if word in one.value and _decoder.decode(one.value).spec.node == node]
        if page.next is None:
            return found
        after = page.next
