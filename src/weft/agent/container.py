"""Translates a container's allocation, and what was prepared for it, into the plan that a runtime starts. Pure.

What the spec says wins over the image: a command replaces the image's entrypoint and drops its arguments, arguments replace the
image's, variables are added to the image's or replace them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from weft.agent.known import Wanted
from weft.contracts.container import ContainerMount, ContainerPlan, ContainerProcess, User
from weft.contracts.image import OciConfig
from weft.kinds.allocation import AllocatedContainer
from weft.kinds.container import list_capabilities, read_mount
from weft.objects.errors import InvalidInput

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_STOP_SIGNAL = "SIGTERM"


class PulledImage(msgspec.Struct, frozen=True):
    """An image that is here: its ``layers`` as folders, the uppermost first, what it says, and who ``user`` is in it."""

    digest: str
    layers: list[str]
    config: OciConfig
    user: User


class Ready(msgspec.Struct, frozen=True):
    """What has been made for it: its image; ``netns``, empty for one without networks; ``folders`` of its volumes by name."""

    image: PulledImage
    netns: str = ""
    folders: Mapping[str, str] = {}


def check_served(wanted: Wanted) -> AllocatedContainer:
    """Refuse what its spec may ask for and no agent can do yet, before anything is made for it. Raises InvalidInput."""
    container = wanted.spec.container
    if container is None:
        raise InvalidInput(f"{wanted.what} is no container")
    for asked, name, what in (
        (container.mounts, "mounts", "volumes can't be mounted in containers yet"),
        (container.health_check, "health_check", "health checks of containers aren't made yet"),
    ):
        if asked:
            raise InvalidInput(
                f"{wanted.what}: {what}", reason="notServed", field=f"spec.{name}", hint=f"leave spec.{name} out"
            )
    return container


def name_user(container: AllocatedContainer, config: OciConfig) -> str:
    """Whom it runs as, as it is written: to be looked up in the image."""
    return container.user or config.user


def plan_container(wanted: Wanted, ready: Ready) -> ContainerPlan:
    """The container of ``wanted``. Raises InvalidInput for one with nothing to run, or with a volume that isn't there."""
    spec, container = wanted.spec, wanted.spec.container
    if container is None:
        raise InvalidInput(f"{wanted.what} is no container")
    main, image = spec.nics[0] if spec.nics else None, ready.image
    return ContainerPlan(
        id=wanted.id,
        uid=wanted.uid,
        name=spec.workload.name,
        incarnation=spec.incarnation,
        layers=list(image.layers),
        process=ContainerProcess(
            argv=_choose_argv(wanted, container, image.config),
            env=_merge_env(image.config.env, container.env, image.user),
            cwd=image.config.workdir or "/",
            user=image.user,
            stop_signal=image.config.stop_signal or DEFAULT_STOP_SIGNAL,
        ),
        cpu=spec.resources.cpu,
        memory_bytes=spec.resources.memory,
        pids=container.pids,
        mounts=_plan_mounts(wanted, container, ready.folders),
        netns=ready.netns,
        hostname=spec.workload.name,
        name_servers=[main.gateway] if main is not None else [],
        search=[main.domain] if main is not None and main.domain else [],
        read_only_root=container.read_only,
        capabilities=list_capabilities(container),
    )


def _choose_argv(wanted: Wanted, container: AllocatedContainer, config: OciConfig) -> list[str]:
    if container.command:
        argv = [*container.command, *container.args]
    else:
        argv = [*config.entrypoint, *(container.args or config.cmd)]
    if not argv or not argv[0]:
        raise InvalidInput(
            f"{wanted.what}: image {container.image} says nothing of what to run",
            reason="nothingToRun",
            field="spec.command",
            hint="say it in spec.command",
        )
    return argv


def _merge_env(of_image: Sequence[str], of_spec: Mapping[str, str], user: User) -> list[str]:
    merged = {"PATH": DEFAULT_PATH, "HOME": user.home}
    merged |= {name: value for name, sign, value in (text.partition("=") for text in of_image) if name and sign}
    return [f"{name}={value}" for name, value in {**merged, **of_spec}.items()]


def _plan_mounts(wanted: Wanted, container: AllocatedContainer, folders: Mapping[str, str]) -> list[ContainerMount]:
    mounts = []
    for mount in map(read_mount, container.mounts):
        if mount.volume not in folders:
            raise InvalidInput(f"{wanted.what}: volume {mount.volume} isn't ready on this node", field="spec.mounts")
        mounts.append(ContainerMount(folders[mount.volume], mount.path, mount.read_only))
    return sorted(mounts, key=lambda mount: mount.target)  # one that lies within another comes after it
