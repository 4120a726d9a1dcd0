"""An archive of a container image: a plain tar with an OCI image layout in it. The server checks only that it is one, and which
image it has; a node reads it.

Archives come from strangers: headers are read one by one, nothing is unpacked, and only plain files count.
Source: OCI image layout specification 1.0.
"""

from __future__ import annotations

from typing import BinaryIO

import msgspec

from weft.objects.image.bundle import MANIFEST_NAME, damaged, not_an_image, read_header
from weft.objects.image.reference import DIGEST

MOST_MEMBERS = 20_000
_LAYOUT, _INDEX, _DOCKERS = "oci-layout", "index.json", "manifest.json"
_MOST_INDEX_BYTES = 1 << 20
_INTO_ONE = "skopeo copy SOURCE oci-archive:FILE makes one of what docker, podman or a registry has"


class _Entry(msgspec.Struct):
    digest: str


class _Index(msgspec.Struct):
    manifests: list[_Entry]


def read_archive(file: BinaryIO, size: int) -> str:
    """The digest (sha256:…) of the one image, or index of images for several platforms, in the tar ``file`` of ``size`` bytes.
    Raises DriverFailed (``notAnImage``)."""
    places: dict[str, tuple[int, int]] = {}
    offset = 0
    for _ in range(MOST_MEMBERS):
        header = read_header(file, offset, size)
        if header is None:
            break
        name, at, length, plain = header
        if plain:
            places[name.removeprefix("./")] = (at, length)
        offset = at + -(-length // 512) * 512
    else:
        raise not_an_image(f"the archive has more than {MOST_MEMBERS} members")
    if MANIFEST_NAME in places:
        raise not_an_image(f"the archive doesn't begin with {MANIFEST_NAME}")
    if _LAYOUT not in places or _INDEX not in places:
        docker = _DOCKERS in places
        raise not_an_image(
            "the archive has docker's own format"
            if docker
            else "the archive holds neither a bundle nor a container image",
            "skopeo copy docker-archive:FILE oci-archive:OTHER makes one that weft reads" if docker else _INTO_ONE,
        )
    at, length = places[_INDEX]
    if length > _MOST_INDEX_BYTES:
        raise damaged(f"its {_INDEX} is too long")
    file.seek(at)
    try:
        found = {entry.digest for entry in msgspec.json.decode(file.read(length), type=_Index).manifests}
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        raise not_an_image(f"the archive's {_INDEX}: {problem}") from problem
    if len(found) != 1:
        raise not_an_image(
            f"the archive holds {len(found)} images", "skopeo copy oci-archive:FILE:TAG oci-archive:OTHER takes one out"
        )
    digest = found.pop()
    if not DIGEST.fullmatch(digest) or f"blobs/{digest.replace(':', '/')}" not in places:
        raise not_an_image(f"the archive lacks the image {digest[:80]!r} that its {_INDEX} names")
    return digest
