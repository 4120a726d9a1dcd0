"""The capabilities of root in a container: the default ones, those that may be added, and their spelling. Pure."""

from __future__ import annotations

from weft.kinds.allocation import AllocatedContainer
from weft.objects.errors import InvalidInput

# What root in a container may do by itself: what file servers, mail servers and package managers need, and nothing that reaches
# beyond it.
DEFAULT_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)
# That may be added: they hold within its own user namespace.
MORE_CAPABILITIES = (
    "AUDIT_WRITE",
    "IPC_LOCK",
    "IPC_OWNER",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BROADCAST",
    "NET_RAW",
    "SYS_ADMIN",
    "SYS_NICE",
    "SYS_PTRACE",
    "SYS_RESOURCE",
    "SYS_TTY_CONFIG",
)


def read_capabilities(given: list[str], name: str, more: tuple[str, ...]) -> list[str]:
    """Capabilities in capitals and without CAP_, in order, none twice."""
    read = [word.upper().removeprefix("CAP_") for word in given]
    known = (*DEFAULT_CAPABILITIES, *MORE_CAPABILITIES, *more)
    for word in read:
        if word not in known:
            raise InvalidInput(
                f"spec.{name}: {word[:60]!r} is not a capability that a container can have",
                field=f"spec.{name}",
                hint=f"one of {', '.join(sorted(set(known)))}",
            )
    return sorted(set(read))


def list_capabilities(container: AllocatedContainer) -> list[str]:
    """All that root has in it, as CAP_…"""
    kept = () if "ALL" in container.drop_capabilities else DEFAULT_CAPABILITIES
    held = ({*kept} - {*container.drop_capabilities}) | {*container.add_capabilities}
    return sorted(f"CAP_{name}" for name in held)
