"""The head of a qcow2 file: the guest's disk size, and whether other files are read with it. Pure."""

from __future__ import annotations

import struct

import msgspec

HEADER_BYTES = 104
_MAGIC = b"QFI\xfb"
_START = struct.Struct(">4sIQIIQI")
_FEATURES = struct.Struct(">Q")
_FEATURES_AT = 72
_EXTERNAL_DATA = 1 << 2


class Qcow2Header(msgspec.Struct, frozen=True):
    version: int
    virtual_size: int
    has_backing: bool  # part of the content is in another file, named inside
    has_external_data: bool  # likewise
    is_encrypted: bool = False


def read_qcow2_header(data: bytes) -> Qcow2Header | None:
    """The header in a file's first ``HEADER_BYTES``; None if it is no qcow2 image (of version 2 or 3)."""
    if len(data) < _START.size or not data.startswith(_MAGIC):
        return None
    _, version, backing_at, _, _, size, cipher = _START.unpack_from(data)
    if version not in (2, 3):
        return None
    features = 0
    if version == 3 and len(data) >= _FEATURES_AT + _FEATURES.size:
        (features,) = _FEATURES.unpack_from(data, _FEATURES_AT)
    return Qcow2Header(version, size, backing_at != 0, bool(features & _EXTERNAL_DATA), cipher != 0)
