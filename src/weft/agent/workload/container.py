"""Containers on a node: their images and volumes; and the plan of a container, which is pure.

The spec wins over the image: a command replaces the image's entrypoint and drops its arguments, arguments replace the image's,
variables are added to the image's or replace them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_network

from weft.agent.state.allocation import LocalAllocation
from weft.agent.workload.kind import NodeParts, Prepared, Show
from weft.agent.workload.shape import has_resources
from weft.contracts.driver.container import ContainerMount, ContainerNic, ContainerPlan, ContainerProcess, User
from weft.contracts.driver.image import OciConfig
from weft.contracts.driver.runtime import GuestShape
from weft.contracts.driver.volume import HasFiles
from weft.kinds.allocation import AllocatedContainer, AllocationSpec, HealthCheck
from weft.kinds.fields.mount import read_mount
from weft.kinds.parts.capabilities import list_capabilities
from weft.objects.errors import DriverFailed, InvalidInput, WeftError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_STOP_SIGNAL = "SIGTERM"


class Container:
    """See WorkloadKind."""

    has_root_disk = False
    needs_guest_agent = False

    async def fetch_image(self, node: NodeParts, local: LocalAllocation, prepared: Prepared, show: Show) -> str:
        opened = await node.secrets.open(local)
        prepared.env = opened.env
        prepared.pulled, detail = await node.container_images.ensure(local, prepared.digest, show, opened.credentials)
        return detail

    async def prepare_volumes(self, node: NodeParts, local: LocalAllocation, prepared: Prepared) -> None:
        """Each has a file system; a new one belongs to the container's user. A running container has its volumes already, and a
        migrating one brings them."""
        prepared.volumes = []
        user = prepared.pulled.user if prepared.pulled is not None else User()
        for volume in local.spec.volumes if local.spec.role != "target" else ():
            disks = await node.pools.of(local.spec, volume.uid)
            if not isinstance(disks, HasFiles):
                raise InvalidInput(
                    f"{local.what}: volume driver {disks.name} of this node can't mount volumes in containers",
                    reason="notServed",
                    field="spec.mounts",
                )
            facts = await disks.inspect(volume.uid) if prepared.adjusting else None
            if facts is None:
                async with node.heavy:
                    whose = f"{local.what}: its volume {volume.name}"
                    await node.pools.refuse_elsewhere(
                        local.spec,
                        volume.uid,
                        volume.uid,
                        whose,
                        migrate="give it to a VM on this node, and migrate it",
                    )
                    owner = (user.uid, user.gid)
                    try:
                        facts = await disks.ensure_files(volume.uid, size_bytes=volume.size, owner=owner)
                    except WeftError as problem:
                        problem.message = problem.message.replace(volume.uid, volume.name)
                        raise
            node.volumes.uids.add(volume.uid)
            prepared.volumes.append(facts)

    def build_seed(self, local: LocalAllocation, prepared: Prepared) -> None:
        return None

    def plan_guest(self, local: LocalAllocation, prepared: Prepared) -> ContainerPlan:
        return plan_container(local, prepared)

    def is_shaped(self, spec: AllocationSpec, shape: GuestShape) -> bool:
        """Only its CPU and memory can change while it runs."""
        return has_resources(spec, shape)

    def find_resize_limits(self, shape: GuestShape) -> dict[str, int]:
        return {"cpu": int(shape.most_cpu), "memory": shape.most_memory_bytes}

    def find_health_check(self, spec: AllocationSpec) -> HealthCheck | None:
        return spec.container.health_check if spec.container is not None else None


def plan_container(local: LocalAllocation, prepared: Prepared) -> ContainerPlan:
    """The container of ``local``. Raises InvalidInput without a command to run or with a missing volume, DriverFailed while its
    image is missing."""
    spec, container = local.spec, local.spec.container
    if container is None:
        raise InvalidInput(f"{local.what} is not a container")
    if prepared.pulled is None:
        raise DriverFailed(f"{local.what}: its image is not on this node", details={"step": "image"})
    main, image = spec.nics[0] if spec.nics else None, prepared.pulled
    disks = {volume.name: facts.path for volume, facts in zip(spec.volumes, prepared.volumes, strict=True)}
    return ContainerPlan(
        id=local.id,
        uid=local.uid,
        name=spec.workload.name,
        incarnation=spec.incarnation,
        layers=list(image.layers),
        process=ContainerProcess(
            argv=_choose_argv(local, container, image.config),
            env=_merge_env(image.config.env, {**container.env, **prepared.env}, image.user),
            cwd=image.config.workdir or "/",
            user=image.user,
            stop_signal=image.config.stop_signal or DEFAULT_STOP_SIGNAL,
        ),
        cpu=spec.resources.cpu,
        memory_bytes=spec.resources.memory,
        pids=container.pids,
        mounts=_plan_mounts(local, container, disks),
        netns=next(iter(prepared.links), "") if prepared.in_namespace else "",
        nics=[] if prepared.in_namespace else _plan_nics(spec, prepared.links),
        hostname=spec.workload.name,
        name_servers=[main.gateway] if main is not None else [],
        search=[main.domain] if main is not None and main.domain else [],
        read_only_root=container.read_only,
        capabilities=list_capabilities(container),
        disk_bytes=spec.resources.disk,
    )


def _plan_nics(spec: AllocationSpec, links: Sequence[str]) -> list[ContainerNic]:
    """The first one has the default route."""
    return [
        ContainerNic(link, nic.mac, nic.mtu, nic.address, ip_network(nic.cidr).prefixlen, "" if index else nic.gateway)
        for index, (link, nic) in enumerate(zip(links, spec.nics, strict=True))
    ]


def _choose_argv(local: LocalAllocation, container: AllocatedContainer, config: OciConfig) -> list[str]:
    if container.command:
        argv = [*container.command, *container.args]
    else:
        argv = [*config.entrypoint, *(container.args or config.cmd)]
    if not argv or not argv[0]:
        raise InvalidInput(
            f"{local.what}: image {container.image} names no command to run",
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
    local: LocalAllocation, container: AllocatedContainer, disks: Mapping[str, str]
) -> list[ContainerMount]:
    mounts = []
    for mount in map(read_mount, container.mounts):
        if mount.volume not in disks:
            raise InvalidInput(f"{local.what}: volume {mount.volume} is not ready on this node", field="spec.mounts")
        mounts.append(ContainerMount(disks[mount.volume], mount.path, mount.read_only, file_system="ext4"))
    return sorted(mounts, key=lambda mount: mount.target)  # a nested mount comes after its parent
