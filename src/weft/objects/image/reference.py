"""Names of container images: ``[REGISTRY[:PORT]/]NAME[:TAG][@sha256:…]`` in a registry, ``oci:PATH[:TAG]`` for an image layout and
``oci-archive:FILE[:TAG]`` for one in a tar file, both on the node; a NAME alone is an Image that weft holds, PROJECT/NAME one
that another project shares. Pure.

A name without a registry is refused unless the cluster's configuration has a default registry: weft doesn't guess one.
Source: the grammar of the OCI distribution specification 1.1, "pulling manifests", and of what people type for registries.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from weft.objects.errors import InvalidInput
from weft.objects.identity import check_shared_name

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
LONGEST = 1024
_LONGEST_NAME = 255
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*|\[[0-9a-fA-F:.]+\])"
    r"(?::([0-9]{1,5}))?"
)
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LOCAL = {"oci": "layout", "oci-archive": "archive"}
_NOT_READ = ("docker-archive", "docker-daemon", "containers-storage", "dir", "docker", "http", "https")


class ImageReference(msgspec.Struct, frozen=True):
    """``tag`` and ``digest`` may be empty."""

    place: Literal["registry", "held", "layout", "archive"]
    registry: str = ""  # HOST[:PORT]
    name: str = ""  # in a registry, or of an Image
    path: str = ""  # on the node, absolute
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        prefix = {"registry": f"{self.registry}/{self.name}", "held": self.name, "layout": f"oci:{self.path}"}
        text = prefix.get(self.place, f"oci-archive:{self.path}")
        return text + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def held_name(text: str) -> str:
    """The Image that ``text`` names: NAME, or PROJECT/NAME of one that another project shares; "" if it names an image
    elsewhere. A registry has a dot or a port, or is localhost."""
    if {*":@"} & {*text} or text.count("/") > 1:
        return ""
    project, slash, _ = text.partition("/")
    return "" if slash and (not project or "." in project or project.lower() == "localhost") else text


def read_source(text: str, field: str = "spec.image") -> ImageReference:
    """The image in a registry, or held by weft, that ``text`` names. Raises InvalidInput."""
    if name := held_name(text):
        return ImageReference("held", name=check_shared_name(name, field))
    return parse_reference(text, field=field)


def parse_reference(text: str, *, default_registry: str = "", field: str = "spec.image") -> ImageReference:
    """The image that ``text`` names. Raises InvalidInput with ``field``, and with what to write instead."""
    if not text or len(text) > LONGEST or not text.isprintable() or " " in text:
        raise _refused(
            field, f"{text[:80]!r} is not an image", "write REGISTRY/NAME:TAG, like registry.example.com/shop/web:1.4"
        )
    rest, at, digest = text.partition("@")
    if at and not DIGEST.fullmatch(digest):
        raise _refused(field, f"{digest[:80]!r} is not a digest", "write @sha256: and 64 lower-case hex digits")
    scheme, colon, local = rest.partition(":")
    if colon and scheme in _LOCAL:
        return _parse_local(scheme, local, digest, field)
    if colon and scheme in _NOT_READ and (local.startswith("/") or scheme not in ("dir", "docker")):
        hint = f"skopeo copy {scheme}:… oci-archive:FILE makes one that weft reads"
        if scheme in ("docker", "http", "https"):
            hint = f"leave {scheme}:// out: REGISTRY/NAME:TAG"
        raise _refused(field, f"weft takes no image from {scheme}:", hint)
    name, tag = rest, ""
    if ":" in rest.rpartition("/")[2]:
        name, _, tag = rest.rpartition(":")
        if not _TAG.fullmatch(tag):
            raise _refused(field, f"{tag[:80]!r} is not a tag", "use letters, digits, _ . and -, at most 128")
    registry, slash, within = name.partition("/")
    if not slash or not (set(".:[") & set(registry) or registry.lower() == "localhost"):
        if not default_registry:
            raise _refused(
                field, f"{text[:120]!r} names no registry", "write REGISTRY/NAME:TAG; weft has no default registry"
            )
        registry, within = default_registry, name
    host = _HOST.fullmatch(registry)
    if host is None or int(host[1] or "1") not in range(1, 65536):
        raise _refused(field, f"{registry[:80]!r} is not a registry", "write HOST or HOST:PORT before the first /")
    registry = registry.lower()
    if registry == "docker.io" and "/" not in within:
        within = f"library/{within}"
    if len(within) > _LONGEST_NAME or not _NAME.fullmatch(within):
        raise _refused(
            field,
            f"{within[:80]!r} is not a valid image name",
            "use lower-case letters and digits, with . _ - between, parts split by /",
        )
    return ImageReference("registry", registry, within, "", tag or ("" if digest else "latest"), digest)


def _parse_local(scheme: str, rest: str, digest: str, field: str) -> ImageReference:
    path, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        path, tag = rest, ""
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise _refused(
            field, f"{scheme}: needs an absolute path on the node", f"write it like {scheme}:/srv/images/web:1.4"
        )
    if tag and not _TAG.fullmatch(tag):
        raise _refused(field, f"{tag[:80]!r} is not a tag", "use letters, digits, _ . and -, at most 128")
    place: Literal["layout", "archive"] = "layout" if scheme == "oci" else "archive"
    return ImageReference(place, path=path, tag=tag, digest=digest)


def _refused(field: str, message: str, hint: str) -> InvalidInput:
    return InvalidInput(f"{field}: {message}", field=field, hint=hint)
