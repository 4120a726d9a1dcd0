"""Announcements of devices: Home Assistant's discovery messages, and the topics of Sparkplug's births. Pure."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from weft.contracts.device import AnnouncedDevice

TOPICS = ("homeassistant/+/+/config", "homeassistant/+/+/+/config", "spBv1.0/+/NBIRTH/+", "spBv1.0/+/DBIRTH/+/+")
MOST_BYTES = 16 << 10
MOST_CHARACTERS = 128  # of each text that is kept
_FACTS = ("unit_of_measurement", "device_class", "state_topic", "command_topic")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def read_birth(topic: str, payload: bytes) -> AnnouncedDevice | None:
    """The device that announces itself, None when this is no announcement (an empty one takes it back)."""
    parts = topic.split("/")
    if len(payload) > MOST_BYTES or not all(parts):
        return None
    if parts[0] == "spBv1.0" and len(parts) in (4, 5):
        place = "/".join((parts[1], *parts[3:]))
        return AnnouncedDevice("mqtt", _cut(place), _cut(parts[-1]), facts={"sparkplug_group": _cut(parts[1])})
    if parts[0] != "homeassistant" or len(parts) not in (4, 5) or parts[-1] != "config":
        return None
    try:
        given = msgspec.json.decode(payload, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    device = given.get("device", given.get("dev", {}))
    device = device if isinstance(device, dict) else {}
    ids = device.get("identifiers", device.get("ids"))
    first = ids[0] if isinstance(ids, list) and ids else ids
    address = _cut(first) or _cut(given.get("unique_id", given.get("uniq_id"))) or _cut("/".join(parts[1:-1]))
    facts = {name: _cut(given[name]) for name in _FACTS if _cut(given.get(name))}
    facts["component"] = _cut(parts[1])
    return AnnouncedDevice(
        "mqtt",
        address,
        _cut(device.get("name")) or _cut(given.get("name")) or address,
        _cut(device.get("manufacturer", device.get("mf"))),
        _cut(device.get("model", device.get("mdl"))),
        facts,
    )


def _cut(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    return _CONTROL.sub(" ", str(value)[:MOST_CHARACTERS]).strip()
