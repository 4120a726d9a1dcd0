"""Image: a base disk (or bundle) that VMs are cloned from, or a container image that the fabric holds itself. The images
controller fetches and checks it once, or has a VM's node make it; nodes take it from the server by digest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, size, text
from weft.kinds.parts.goal import find_condition, reaches
from weft.kinds.parts.image.work import ImageOrder
from weft.kinds.parts.sharing import SHARE, SharedWith, check_shares, share_reference
from weft.kinds.record import (
    Access,
    Admission,
    Column,
    Display,
    Goal,
    Index,
    Kind,
    Lifetime,
    Object,
    Operation,
    Reference,
    Stored,
    Verb,
    uid_of,
)
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.identity import check_name, object_key
from weft.objects.image.reference import ImageReference, read_source
from weft.objects.quantity import format_bytes
from weft.objects.schema import field

OWN = ("busybox", "debian-12", "python3-11", "tiny")  # what `weft image build` can make
SCHEMES = ("http", "https", "ftp", "file", "oci")
OCI = "oci://"
OCI_FORMAT = "oci"  # of a file that holds a container image, for containers to run


LEAST_WARM_BYTES, MOST_WARM_BYTES = 64 << 20, 8 << 30
MOST_WARM_CPUS = 16
MOST_WARM_IMAGES = 8  # booted machines that a node keeps
WARM = "Warm"  # the condition: nodes have the booted machine
BOOTED = "Booted"  # the condition: which nodes have one, and for what
NOT_WARM, NO_NODE = "notWarm", "noNode"  # reasons: a node can't have it; no node is ready
FITS = "use an image that weft builds: weft image build debian-12"


class Warm(msgspec.Struct, kw_only=True):
    """A booted machine of the image that nodes keep, from which its VMs start instead of booting."""

    memory: Annotated[
        int, field("Memory of the booted machine; a VM with less boots cold. 0: what the image needs", quantity="bytes")
    ] = 0
    cpu: Annotated[str, field("Cores of the VMs that start from it, like 1-4; the machine boots with the first")] = (
        "1-4"
    )


class ImageSpec(msgspec.Struct, kw_only=True):
    url: Annotated[
        str,
        field(
            "Source: http, https, ftp or file, or a container image: oci://REGISTRY/NAME:TAG, oci://NAME, oci://PROJECT/NAME",
            change="never",
        ),
    ] = ""
    made_from: Annotated[
        str, field("VM of this project whose root disk becomes the image, as vm/NAME; instead of url", change="never")
    ] = ""
    keep_identity: Annotated[
        bool,
        field(
            "Of an image made from a VM: leave what is that machine's own on the disk, such as its machine id, SSH keys and logs",
            change="never",
        ),
    ] = False
    sha256: Annotated[str, field("SHA-256 digest, 64 hex digits; computed and kept if unset", change="never")] = ""
    registry_secret: Annotated[
        str, field("Secret with the credentials for the registry of an oci:// image", change="live")
    ] = ""
    warm: Annotated[
        Warm | None,
        field("Keep a booted machine of the image on every node; the verb warm sets it", change="live"),
    ] = None
    warm_often: Annotated[
        bool,
        field("Let nodes that often start VMs of it keep a booted machine of it automatically", change="live"),
    ] = True
    shared_with: SharedWith = []


class ImageStatus(msgspec.Struct, kw_only=True):
    phase: Literal["Pending", "Snapshotting", "Copying", "Fetching", "Available", "Failed"] = "Pending"
    sha256: str = ""  # digest of the fetched file
    digest: str = ""  # sha256:… of the container image that it is, or is made of
    size: int = 0
    virtual_size: int = 0  # size of the disk that a guest sees
    min_memory: int = 0  # least bytes of a machine; 0: unknown
    format: str = ""
    agent: bool = False
    reason: str = ""
    message: str = ""
    fetched: int = 0
    snapshot_uid: str = ""  # of one that is made from a VM: its snapshot, while it is copied
    consistency: str = ""  # of the VM's disk at that instant: filesystem, crash or stopped
    order: ImageOrder | None = None  # what the node with the snapshot is asked to do now
    cleaned: list[str] = []  # what of the VM's identity was removed


def read_cores(text_: str) -> tuple[int, int]:
    """The least and the most cores in "1-4" or "2". Raises InvalidInput."""
    words = text_.split("-")
    if not 1 <= len(words) <= 2 or not all(word.isascii() and word.isdecimal() and len(word) < 4 for word in words):
        raise InvalidInput(
            f"spec.warm.cpu: {text_[:40]!r} is not a range of cores", field="spec.warm.cpu", hint="write 2, or 1-4"
        )
    least, most = int(words[0]), int(words[-1])
    if not 1 <= least <= most <= MOST_WARM_CPUS:
        raise InvalidInput(
            f"spec.warm.cpu: {text_} is not a range from 1 to {MOST_WARM_CPUS}", field="spec.warm.cpu", hint="write 1-4"
        )
    return least, most


def find_obstacle(status: Mapping[str, Any]) -> str | None:
    """Why no node can ever have a booted machine of the image with this status, as what follows its name; None: nothing known."""
    if status.get("phase") != "Available" or status.get("agent"):
        return None
    if status.get("format") == OCI_FORMAT:
        return "can't be kept warm: it is a container image, which boots no machine"
    return "can't be kept warm: it lacks weft's agent, which makes a copy a machine of its own"


class WarmInput(msgspec.Struct):
    memory: Annotated[int, field("Memory of the booted machine", quantity="bytes")] = 0
    cpu: Annotated[str, field("Cores of the VMs that start from it, like 1-4")] = "1-4"
    off: Annotated[bool, field("Keep it on no node any more")] = False


def _warm(obj: Object, given: WarmInput) -> dict[str, Any]:
    """Raises IllegalTransition for an image that can't be warm."""
    if given.off:
        return {**obj["spec"], "warm": None}
    if (obstacle := find_obstacle(obj.get("status") or {})) is not None:
        raise IllegalTransition(f"image/{obj['name']} {obstacle}", reason="noAgent", hint=FITS)
    return {**obj["spec"], "warm": {"memory": given.memory, "cpu": given.cpu}}


def check_image(spec: ImageSpec) -> None:
    check_shares(spec.shared_with)
    check_warm(spec)
    if spec.made_from:
        check_made_from(spec)
    else:
        check_url(spec)


def check_made_from(spec: ImageSpec) -> None:
    """Raises InvalidInput."""
    for name in ("url", "sha256", "registry_secret"):
        if getattr(spec, name):
            raise InvalidInput(
                f"spec.{name}: the image is made from {spec.made_from[:60]}, and fetched from nowhere",
                field=f"spec.{name}",
                hint=f"leave spec.{name} out, or spec.made_from",
            )
    kind, _, name = spec.made_from.partition("/")
    if kind != "vm" or not name:
        hint = "write vm/NAME" if "/" in spec.made_from else f"write vm/{spec.made_from[:63]}"
        if kind == "container" and name:
            hint = (
                f"weft container convert {name[:60]} makes a VM of it; or build its image: weft image add NAME FILE.tar"
            )
        raise InvalidInput(
            f"spec.made_from: {spec.made_from[:60]!r} is not a VM: images are made from VMs",
            field="spec.made_from",
            hint=hint,
        )
    check_name(name, "spec.made_from")


def check_warm(spec: ImageSpec) -> None:
    """Raises InvalidInput."""
    if spec.warm is not None:
        read_cores(spec.warm.cpu)
        if spec.warm.memory and spec.warm.memory < LEAST_WARM_BYTES:
            raise InvalidInput(
                f"spec.warm.memory: {format_bytes(spec.warm.memory)} is too little for a machine",
                field="spec.warm.memory",
                hint="give at least 64M",
            )
        if spec.warm.memory > MOST_WARM_BYTES:
            raise InvalidInput(
                f"spec.warm.memory: {format_bytes(spec.warm.memory)} is too much: every node keeps it as a file",
                field="spec.warm.memory",
                hint="give at most 8G; VMs with more memory start from it, too",
            )


def check_url(spec: ImageSpec) -> None:
    """Raises InvalidInput."""
    if spec.keep_identity:
        raise InvalidInput(
            "spec.keep_identity: only an image that is made from a VM has the identity of one",
            field="spec.keep_identity",
            hint="give spec.made_from too, or leave it out",
        )
    if not spec.url:
        raise InvalidInput(
            "spec.url: the image has no source",
            field="spec.url",
            hint="give spec.url, or spec.made_from to make it from a VM",
        )
    try:
        parts = urlsplit(spec.url)
        _ = parts.port
    except ValueError as problem:
        raise InvalidInput(f"spec.url: {spec.url[:80]!r}: {problem}", field="spec.url") from None
    if not spec.url.isprintable() or not spec.url.isascii() or " " in spec.url:
        raise InvalidInput(
            f"spec.url: {spec.url[:80]!r} has characters that no URL has", field="spec.url", hint="write them as %20"
        )
    if parts.scheme not in SCHEMES:
        raise InvalidInput(
            f"spec.url: {spec.url[:80]!r} has no scheme weft can fetch",
            field="spec.url",
            hint="use http, https, ftp or file, like file:///srv/images/web.qcow2, or oci for a container's",
        )
    if parts.scheme == "oci":
        check_oci(spec)
    elif spec.registry_secret:
        raise InvalidInput(
            f"spec.registry_secret: {parts.scheme} uses no registry",
            field="spec.registry_secret",
            hint="use it with oci://REGISTRY/NAME:TAG, or leave it out",
        )
    if parts.scheme == "file" and (parts.netloc not in ("", "localhost") or not parts.path.startswith("/")):
        raise InvalidInput("spec.url: a file needs an absolute path", field="spec.url", hint="file:///path/to/image")
    if parts.scheme != "file" and not parts.hostname:
        raise InvalidInput(f"spec.url: {spec.url[:80]!r} has no host", field="spec.url")
    if parts.password or (parts.username and parts.scheme != "ftp"):
        raise InvalidInput(
            "spec.url contains a user or password, which everyone who may read the image would see",
            field="spec.url",
            hint="serve the image without one, or fetch it yourself and give a file URL",
        )
    if spec.sha256 and not re.fullmatch(r"[0-9a-f]{64}", spec.sha256):
        raise InvalidInput(
            "spec.sha256 is not a SHA-256 digest",
            field="spec.sha256",
            hint="64 lower-case hex digits, as sha256sum prints them",
        )


def check_oci(spec: ImageSpec) -> None:
    """Raises InvalidInput."""
    if spec.registry_secret:  # empty is none, as it is written out at admission
        check_name(spec.registry_secret, "spec.registry_secret")
    source = read_oci(spec.url) if spec.url.startswith(OCI) else None
    if source is None or source.place not in ("registry", "held"):
        raise InvalidInput(
            f"spec.url: {spec.url[:80]!r} is not an image in a registry",
            field="spec.url",
            hint="write oci://REGISTRY/NAME:TAG, or …@sha256:… to pin one, or oci://NAME of an image that weft holds",
        )
    if source.place == "held" and spec.registry_secret:
        raise InvalidInput(
            f"spec.registry_secret: {source.name} is held by weft itself, so no registry credentials apply",
            field="spec.registry_secret",
            hint="leave it out",
        )
    if spec.sha256:
        raise InvalidInput(
            "spec.sha256: the server makes the disk, so its digest isn't known yet",
            field="spec.sha256",
            hint="pin the container image itself: oci://REGISTRY/NAME@sha256:…",
        )


def read_oci(url: str) -> ImageReference:
    """Image that an ``oci://`` URL names. Raises InvalidInput."""
    return read_source(url.removeprefix(OCI), "spec.url")


def _names_elsewhere(spec: ImageSpec) -> list[str]:
    """The image of another project that it is made of."""
    source = read_oci(spec.url) if spec.url.startswith(OCI) else None
    return [source.name] if source is not None and source.place == "held" and "/" in source.name else []


def source_key(image: Stored) -> str:
    """The key of the VM that it is made from."""
    spec = image.spec(ImageSpec)
    return object_key("vm", image.envelope.project, spec.made_from.partition("/")[2])


def _list_sources(spec: ImageSpec) -> list[str]:
    return [spec.made_from.partition("/")[2]] if spec.made_from else []


def _find_rights(old: ImageSpec | None, new: ImageSpec) -> Iterable[tuple[str, str]]:
    """Rights to make an image from a VM: what is on its disk can be read in the image."""
    return [("vm:snapshot", f"make an image from {new.made_from[:80]}")] if new.made_from and old is None else []


def _find_remedy(spec: Mapping[str, Any]) -> str:
    if spec.get("made_from"):
        return "create the image again once that is resolved"
    return "correct the source, the digest or the secret, and add the image again"


IMAGES_BY_UID = Index("images by uid")
IMAGES_BY_SNAPSHOT = Index("images by uid of the snapshot that they are made from", reads_status=True)


def _snapshot_uid(image: Stored) -> tuple[str, ...]:
    uid = image.status(ImageStatus).snapshot_uid
    return (uid,) if uid else ()


def is_warm(obj: Object | None) -> bool:
    """Whether the nodes have done what its spec says of a booted machine."""
    found = find_condition(obj, WARM)
    if obj is None or obj["spec"].get("warm") is None:
        return obj is None or found is None
    return found is not None and found.get("generation") == obj["generation"] and found["status"] == "True"


def is_warmed(obj: Object | None) -> bool:
    """Whether they have done it, one of them can't, the image couldn't be fetched, or the fabric has no node for it."""
    if obj is not None and (obj.get("status") or {}).get("phase") == "Failed":
        return True  # no node gets what can't be fetched
    found = find_condition(obj, WARM)
    given_up = found is not None and obj is not None and found.get("generation") == obj["generation"]
    return is_warm(obj) or (given_up and found is not None and found.get("reason") in (NOT_WARM, NO_NODE))


IMAGE = Kind(
    name="image",
    plural="images",
    title="image",
    summary="A base disk that VMs are cloned from, or a container image",
    spec=ImageSpec,
    status=ImageStatus,
    indexes={IMAGES_BY_UID: uid_of, IMAGES_BY_SNAPSHOT: _snapshot_uid},
    references=(
        Reference("secret", "spec.registry_secret", lambda s: [s.registry_secret] if s.registry_secret else []),
        Reference("image", "spec.url", _names_elsewhere, blocks=False),  # its content is copied
        Reference("vm", "spec.made_from", _list_sources, blocks=False, existing=True),  # so is its disk
        share_reference(),
    ),
    verbs=(
        SHARE,
        Verb(
            "warm",
            "Keep a booted machine of the image on every node, from which VMs start in seconds",
            input=WarmInput,
            change=_warm,
            needs="write",
        ),
    ),
    in_backups="named",
    access=Access(
        readers="project",
        status_writer="images",
        further_rights_in_project=_find_rights,
        condition_writers={WARM: "warm", BOOTED: "warm"},
        node_reads="named",
        shared_fields=tuple(
            f"status.{name}"
            for name in ("phase", "sha256", "digest", "size", "virtual_size", "min_memory", "format", "agent")
        ),
    ),
    admission=Admission(check=check_image, kept_fields=("shared_with",)),
    display=Display(
        topic="Storage and networks",
        columns=(
            NAME,
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("SIZE", size("status.size"), align="right"),
            Column(
                "DISK",
                lambda o: size("status.virtual_size")(o) if dig(o, "status.virtual_size") else "–",
                align="right",
            ),
            Column("FORMAT", text("status.format")),
            Column("SHA256", lambda o: str((o.get("status") or {}).get("sha256", ""))[:12] or "–"),
            AGE,
            Column("SOURCE", lambda o: str(dig(o, "spec.url") or dig(o, "spec.made_from") or "–"), wide=True),
            Column("NOTE", text("status.message", ""), flexible=True),
        ),
        find_hint=lambda name, option: f"weft image build {name}{option}" if name in OWN else None,
    ),
    lifetime=Lifetime(
        goals={
            "create": reaches("Available"),
            "warm": Goal(is_warm, "warm", ends_failed=False, ends_refused=False, asked=f"condition={WARM}"),
        },
        operation=Operation(act="fetch"),
        remedy=_find_remedy,
    ),
)
