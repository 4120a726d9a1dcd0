"""The grammar of a container's mounts: VOLUME:/PATH, or VOLUME:/PATH:ro. Pure."""

from __future__ import annotations

import msgspec

from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name

_KEPT_PATHS = ("/proc", "/sys", "/dev")  # the runtime's own


class Mount(msgspec.Struct, frozen=True):
    volume: str
    path: str
    read_only: bool = False


def read_mount(text_: str, field_: str = "spec.mounts") -> Mount:
    """``data:/var/lib/data`` or ``data:/etc/app:ro``. Raises InvalidInput."""
    volume, _, rest = text_.partition(":")
    path, sign, mode = rest.partition(":")
    hint = "write VOLUME:/PATH, like data:/var/lib/data, or VOLUME:/PATH:ro"
    if not volume or not path or (sign and mode not in ("ro", "rw")):
        raise InvalidInput(f"{field_}: {text_[:60]!r} is not a mount", field=field_, hint=hint)
    check_name(volume, field_)
    if path == "/":
        what = "a volume can't be mounted over the container's root"
        raise InvalidInput(f"{field_}: {what}", field=field_, hint="name a folder, like data:/var/lib/data")
    parts = path.split("/")
    if parts[0] or len(parts) < 2 or not all(parts[1:]) or {".", ".."} & set(parts) or "\0" in path:
        raise InvalidInput(f"{field_}: {path[:60]!r} is not an absolute path in a container", field=field_, hint=hint)
    if any(path == kept or path.startswith(f"{kept}/") for kept in _KEPT_PATHS):
        raise InvalidInput(
            f"{field_}: {path[:60]} is reserved for the runtime", field=field_, hint="choose another path"
        )
    return Mount(volume, path, mode == "ro")
