"""Translates a container's allocation, and what was prepared for it, into the plan that a runtime starts. Pure.

What the spec says wins over the image: a command replaces the image's entrypoint and drops its arguments, arguments replace the
image's, variables are added to the image's or replace them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_network

import msgspec

from weft.agent.image.oci import PulledImage
from weft.agent.state.allocation import LocalAllocation
from weft.contracts.driver.container import ContainerMount, ContainerNic, ContainerPlan, ContainerProcess, User
from weft.contracts.driver.image import OciConfig
from weft.kinds.allocation import AllocatedContainer, AllocationSpec
from weft.kinds.fields.mount import read_mount
from weft.kinds.parts.capabilities import list_capabilities
from weft.objects.errors import InvalidInput

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_STOP_SIGNAL = "SIGTERM"


class Ready(msgspec.Struct, frozen=True):
    """What has been made for it: its image; its ``links``, in the order of its NICs: the namespace that they lie in (for each the
    same), or, if not ``in_namespace``, those of a machine of its own; ``disks`` are its volumes' files, each with a file system on
    it, by name; ``env`` what secrets hold of its variables."""

    image: PulledImage
    links: Sequence[str] = ()
    disks: Mapping[str, str] = {}
    env: Mapping[str, str] = {}
    in_namespace: bool = True


def plan_container(wanted: LocalAllocation, ready: Ready) -> ContainerPlan:
    """The container of ``wanted``. Raises InvalidInput for one with nothing to run, or with a volume that isn't there."""
    spec, container = wanted.spec, wanted.spec.container
    if container is None:
        raise InvalidInput(f"{wanted.what} is not a container")
    main, image = spec.nics[0] if spec.nics else None, ready.image
    return ContainerPlan(
        id=wanted.id,
        uid=wanted.uid,
        name=spec.workload.name,
        incarnation=spec.incarnation,
        layers=list(image.layers),
        process=ContainerProcess(
            argv=_choose_argv(wanted, container, image.config),
            env=_merge_env(image.config.env, {**container.env, **ready.env}, image.user),
            cwd=image.config.workdir or "/",
            user=image.user,
            stop_signal=image.config.stop_signal or DEFAULT_STOP_SIGNAL,
        ),
        cpu=spec.resources.cpu,
        memory_bytes=spec.resources.memory,
        pids=container.pids,
        mounts=_plan_mounts(wanted, container, ready.disks),
        netns=next(iter(ready.links), "") if ready.in_namespace else "",
        nics=[] if ready.in_namespace else _plan_nics(spec, ready.links),
        hostname=spec.workload.name,
        name_servers=[main.gateway] if main is not None else [],
        search=[main.domain] if main is not None and main.domain else [],
        read_only_root=container.read_only,
        capabilities=list_capabilities(container),
        disk_bytes=spec.resources.disk,
    )


def _plan_nics(spec: AllocationSpec, links: Sequence[str]) -> list[ContainerNic]:
    """The first one is its way out."""
    return [
        ContainerNic(link, nic.mac, nic.mtu, nic.address, ip_network(nic.cidr).prefixlen, "" if index else nic.gateway)
        for index, (link, nic) in enumerate(zip(links, spec.nics, strict=True))
    ]


def _choose_argv(wanted: LocalAllocation, container: AllocatedContainer, config: OciConfig) -> list[str]:
    if container.command:
        argv = [*container.command, *container.args]
    else:
        argv = [*config.entrypoint, *(container.args or config.cmd)]
    if not argv or not argv[0]:
        raise InvalidInput(
            f"{wanted.what}: image {container.image} names no command to run",
            reason="nothingToRun",
            field="spec.command",
            hint="set spec.command",
        )
    return argv


def _merge_env(of_image: Sequence[str], of_spec: Mapping[str, str], user: User) -> list[str]:
    merged = {"PATH": DEFAULT_PATH, "HOME": user.home}
    merged |= {name: value for name, sign, value in (text.partition("=") for text in of_image) if name and sign}
    return [f"{name}={value}" for name, value in {**merged, **of_spec}.items()]


def _plan_mounts(
    wanted: LocalAllocation, container: AllocatedContainer, disks: Mapping[str, str]
) -> list[ContainerMount]:
    mounts = []
    for mount in map(read_mount, container.mounts):
        if mount.volume not in disks:
            raise InvalidInput(f"{wanted.what}: volume {mount.volume} isn't ready on this node", field="spec.mounts")
        mounts.append(ContainerMount(disks[mount.volume], mount.path, mount.read_only, file_system="ext4"))
    return sorted(mounts, key=lambda mount: mount.target)  # one that lies within another comes after it
