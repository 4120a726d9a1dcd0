"""Parse what CoAP devices say of values and of themselves: payloads, paths, and link lists (RFC 6690). Pure."""

from __future__ import annotations

import math
import re
from urllib.parse import quote, unquote

import msgspec

from weft.contracts.device import AnnouncedDevice, Value
from weft.objects.errors import InvalidInput

TEXT, JSON = 0, 50  # content formats
MOST_BYTES = 1024  # of a value
MOST_LIST_BYTES = 64 << 10
MOST_CHARACTERS = 128  # of each text that is kept
MOST_PATHS = 12  # of a found device's resources, among its facts
_LINK = re.compile(r'<([^>]{1,500})>((?:;[^,;="]+(?:=(?:"[^"]*"|[^,;"]*))?)*)(?:,|$)')
_ATTRIBUTE = re.compile(r';([^,;="]+)(?:=(?:"([^"]*)"|([^,;"]*)))?')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{0,30})?([eE][+-]?[0-9]{1,3})?")


def read_href(href: str, name: str) -> str:
    """The path and query of a property, as they are asked for. Raises InvalidInput."""
    if not re.fullmatch(r"/[!-~]{0,199}", href) or "#" in href or not _is_utf8(href):
        field = f"properties.{name[:63]}.href"
        raise InvalidInput(f"{field}: {href[:60]!r} is not a path", field=field, hint="write like /sensors/temperature")
    return quote(href, safe="/?&=%;:@!$'()*+,~-._")


def _is_utf8(href: str) -> bool:
    """Whether what is percent-encoded is a text, as CoAP has it (RFC 7252, 6.4)."""
    try:
        unquote(href, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def read_value(payload: bytes, content_format: int | None) -> Value | None:
    """The value that a device answers with: JSON, or a text that may be a number; None: neither."""
    if len(payload) > MOST_BYTES:
        return None
    try:
        text = payload.decode()
        if content_format == JSON:
            value = msgspec.json.decode(payload, type=bool | int | float | str)
        else:
            value = _read_text(text.strip())
        if isinstance(value, str):
            return value if value.isprintable() else None
        return value if isinstance(value, bool) or math.isfinite(value) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError):
        return None  # OverflowError: an integer of hundreds of digits


def is_unknown(payload: bytes, content_format: int | None) -> bool:
    """Whether the device says that it doesn't know the value now."""
    return content_format == JSON and payload.strip() == b"null"


def _read_text(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    if _NUMBER.fullmatch(text):
        return float(text) if "." in text or "e" in text.lower() else int(text)
    return text


def write_value(value: Value, content_format: int) -> bytes:
    """How a device that speaks ``content_format`` is told a value."""
    if content_format != JSON and isinstance(value, str):
        return value.encode()
    return msgspec.json.encode(value)


def read_links(payload: bytes) -> list[tuple[str, dict[str, str]]]:
    """Targets and attributes of a link list; [] when it is none, or too long."""
    if len(payload) > MOST_LIST_BYTES:
        return []
    try:
        text = payload.decode().strip()
    except UnicodeDecodeError:
        return []
    links, at = [], 0
    while at < len(text):
        match = _LINK.match(text, at)
        if match is None:
            return []
        attributes: dict[str, str] = {}
        for found in _ATTRIBUTE.finditer(match[2]):
            attributes.setdefault(found[1].strip(), found[2] if found[2] is not None else found[3] or "")
        links.append((match[1], attributes))
        at = match.end()
    return links


def read_birth(address: str, payload: bytes) -> AnnouncedDevice | None:
    """The device at ``address`` by its ``/.well-known/core``; None when that says nothing."""
    links = read_links(payload)
    if not links:
        return None
    paths = [target for target, _ in links if target.startswith("/") and target != "/.well-known/core"]
    types = sorted({one for _, attributes in links for one in attributes.get("rt", "").split()})
    root = next((attributes for target, attributes in links if target == "/"), {})
    title = root.get("title") or next((one["ep"] for _, one in links if one.get("ep")), "")
    facts = {
        "resources": _cut(" ".join(paths[:MOST_PATHS])),
        "observable": _cut(" ".join([target for target, one in links if "obs" in one][:MOST_PATHS])),
        "types": _cut(" ".join(types[:MOST_PATHS])),
    }
    return AnnouncedDevice(
        "coap", address, _cut(title) or f"coap {address}", facts={name: text for name, text in facts.items() if text}
    )


def _cut(text: str) -> str:
    return _CONTROL.sub(" ", text[:MOST_CHARACTERS]).strip()
