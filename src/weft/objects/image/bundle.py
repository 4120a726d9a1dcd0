"""An image bundle: one plain tar with a disk and, if the image boots its kernel directly, kernel and initrd.

``image.json`` comes first in the archive and is a BundleManifest; the other members are plain files at the top level,
named in it. The image recipes write bundles, nodes unpack them; a plain qcow2 or raw file is an image too and needs none.

Archives come from strangers, so they are read here and not by a library with all features of tar: without links, devices, holes
(a member of some bytes that unpacks to exabytes) and headers of any length.
"""

from __future__ import annotations

from typing import BinaryIO, Literal

import msgspec

from weft.objects.errors import DriverFailed
from weft.objects.image.tar import BLOCK, FILE, decode_header, is_tar

MANIFEST_NAME = "image.json"
MOST_MEMBERS = 16
MOST_MANIFEST_BYTES = 65536


class BundleManifest(msgspec.Struct, frozen=True):
    disk: str
    disk_format: Literal["qcow2", "raw", "tar"]  # a tar is the root file system of functions, which no machine boots
    kernel: str | None = None  # with ``initrd`` and ``cmdline``
    initrd: str | None = None
    cmdline: str = ""
    agent: bool = False  # weft's guest agent is inside
    qemu_agent: bool = False  # qemu-guest-agent is inside
    seed: Literal["tar", "nocloud", "machine"] = "tar"  # form of user data; machine: a tar with NICs and volumes, too
    min_memory_bytes: int = 0
    digest: str = ""  # of the container image that it was made of

    @property
    def parts(self) -> tuple[str, ...]:
        """The members it names."""
        return tuple(part for part in (self.disk, self.kernel, self.initrd) if part is not None)


class BundleMember(msgspec.Struct, frozen=True):
    """A part of the archive: ``size`` bytes at ``offset``."""

    name: str
    offset: int
    size: int


class Bundle(msgspec.Struct, frozen=True):
    manifest: BundleManifest
    members: dict[str, BundleMember]


def is_bundle(beginning: bytes) -> bool:
    """Whether a file that begins so (512 bytes) is a tar."""
    return is_tar(beginning)


def begins_bundle(beginning: bytes) -> bool:
    """Whether a tar that begins so must be a bundle: another may be a container image."""
    return beginning[:100].rstrip(b"\0") == MANIFEST_NAME.encode()


def read_bundle(file: BinaryIO, size: int) -> Bundle:
    """The bundle in ``file`` of ``size`` bytes. Raises DriverFailed (``notAnImage``) unless it has exactly the members that its
    manifest names."""
    members: dict[str, BundleMember] = {}
    offset = 0
    while (member := _read_member(file, offset, size)) is not None:
        if not members and member.name != MANIFEST_NAME:
            raise not_an_image(f"the archive doesn't begin with {MANIFEST_NAME}")
        if member.name in members or len(members) >= MOST_MEMBERS:
            raise not_an_image(f"the bundle's member {member.name!r} is a duplicate, or one too many")
        members[member.name] = member
        offset = member.offset + -(-member.size // BLOCK) * BLOCK
    manifest = _read_manifest(file, members.pop(MANIFEST_NAME, None))
    for part in manifest.parts:
        if part not in members:
            raise not_an_image(f"the bundle's {MANIFEST_NAME} names {part[:60]!r}, which isn't in it")
    for name in members:
        if name not in manifest.parts:
            raise not_an_image(f"the bundle's {MANIFEST_NAME} doesn't name its member {name!r}")
    return Bundle(manifest, members)


def decode_manifest(data: bytes) -> BundleManifest:
    """Raises DriverFailed (``notAnImage``)."""
    try:
        manifest = msgspec.json.decode(data, type=BundleManifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        raise not_an_image(f"the bundle's {MANIFEST_NAME}: {problem}") from problem
    if (manifest.kernel is None) != (manifest.initrd is None):
        raise not_an_image(f"the bundle's {MANIFEST_NAME} has only one of kernel and initrd")
    return manifest


def not_an_image(message: str, hint: str | None = None) -> DriverFailed:
    return DriverFailed(message, reason="notAnImage", hint=hint, details={"step": "image"})


def _read_manifest(file: BinaryIO, member: BundleMember | None) -> BundleManifest:
    if member is None or member.size > MOST_MANIFEST_BYTES:
        raise not_an_image(f"the archive has no {MANIFEST_NAME}")
    file.seek(member.offset)
    return decode_manifest(file.read(member.size))


def _read_member(file: BinaryIO, offset: int, end: int) -> BundleMember | None:
    """The member whose header lies at ``offset``; None at the archive's end."""
    header = read_header(file, offset, end)
    if header is None:
        return None
    name, at, size, plain = header
    if not plain or not name or "/" in name or name.startswith(".") or not name.isprintable():
        raise not_an_image(f"the bundle's member {name[:60]!r} is not a plain file at the archive's top")
    return BundleMember(name, at, size)


def read_header(file: BinaryIO, offset: int, end: int) -> tuple[str, int, int, bool] | None:
    """Read the header at ``offset`` of the tar's member: its name, position and number of its bytes, and whether it is a plain
    file; None at the archive's end. Raises DriverFailed (``notAnImage``)."""
    if offset >= end:
        return None
    file.seek(offset)
    try:
        header = decode_header(file.read(BLOCK))
    except ValueError:
        raise damaged() from None
    if header is None:
        return None
    name = header.name.decode("utf-8", "replace")
    if offset + BLOCK + header.size > end:
        raise damaged(f"its member {name[:60]!r} is longer than the archive")
    return name, offset + BLOCK, header.size, header.type == FILE


def damaged(how: str = "") -> DriverFailed:
    return not_an_image(f"the archive is damaged{': ' if how else ''}{how}", "fetch or make the archive again")
