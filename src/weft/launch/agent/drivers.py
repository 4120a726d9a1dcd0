"""The drivers of a node, by its agent's options: only this file names the classes, and loads only the chosen ones."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.network import NetworkDriver
from weft.contracts.driver.volume import VolumeDriver
from weft.contracts.guard import GuardDriver
from weft.contracts.proxy import ProxyDriver
from weft.kinds.allocation import LOCAL
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name

RUNTIMES = {
    "qemu": "weft.drivers.runtime.qemu.driver:QemuDriver",
    "fake": "weft.drivers.runtime.fake.driver:FakeDriver",
    "none": "weft.drivers.runtime.none.driver:NoMachines",
}
CONTAINERS = "weft.drivers.runtime.oci.driver:OciDriver"
CONTAINERD = "/run/containerd/containerd.sock"
MICROVM = "weft.drivers.runtime.qemu.microvm.driver:MicrovmDriver"
KATA = "weft.drivers.runtime.oci.kata.driver:KataDriver"
KATA_CLASS = "weft.drivers.runtime.oci.kata.translate:name_class"
FUNCTIONS = "weft.launch.agent.functions:make_functions"
LOCAL_FUNCTIONS = "weft.launch.agent.functions:make_place"
CONTAINER_IMAGES = "weft.drivers.image.oci.store:OciImages"
NETWORKS = {
    "bridge": "weft.drivers.network.bridge.driver:BridgeNetwork",
    "fake": "weft.drivers.network.fake.driver:FakeNetwork",
}
PROXIES = {"bridge": "weft.drivers.proxy.haproxy.driver:HaproxyDriver"}  # by the network driver
GUARD = "weft.drivers.guard.driver:GuestGuard"  # where guests are real: of QEMU, or containers
VOLUMES = {
    "directory": "weft.drivers.volume.directory.driver:DirectoryVolumes",
    "fake": "weft.drivers.volume.fake.driver:FakeVolumes",
}
CEPH_VOLUMES = "weft.drivers.volume.rbd.driver:RbdVolumes"
RBD = "rbd:"  # before a Ceph pool, where others have a path


class Drivers(NamedTuple):
    """``pools`` by name, beside ``volumes``, which are local; ``images`` of containers None: the node runs none."""

    runtimes: Runtimes
    network: NetworkDriver
    volumes: VolumeDriver
    pools: dict[str, VolumeDriver]
    images: Any  # an OciStore that can be closed
    proxies: ProxyDriver | None
    guard: GuardDriver | None


def load_drivers(options: argparse.Namespace, host: Host, clock: Clock) -> Drivers:
    """Raises InvalidInput for an unusable pool."""
    drivers = {"vm": _load(RUNTIMES[options.runtime], host, clock)}
    others: dict[str, Any] = {}
    images = None
    wanted = options.container_runtime or ("auto" if options.runtime == "qemu" else "none")
    if wanted != "none":
        runtime, _, address = wanted.partition("=")
        containerd = (address or CONTAINERD) if runtime == "containerd" else ""
        named = runtime if runtime in ("crun", "runc") else None
        drivers["container"] = load_class(CONTAINERS)(host, clock, named, containerd)
        if options.runtime == "qemu":
            isolated = load_isolated(options, host, clock, drivers["vm"], containerd)
            drivers["container/vm"], others["container/vm"] = isolated
        images = _load_images(host, clock, options.plain_registry)
    return Drivers(
        Runtimes(drivers, others),
        _load(NETWORKS[options.network], host, clock),
        _load(VOLUMES[options.volume], host, clock),
        {name: _load_pool(host, clock, name, place) for name, place in read_pools(options.pool)},
        images,
        _load(PROXIES[options.network], host, clock) if options.network in PROXIES else None,
        _load(GUARD, host, clock) if options.runtime == "qemu" or "container" in drivers else None,
    )


def load_isolated(
    options: argparse.Namespace, host: Host, clock: Clock, machines: Any, containerd: str
) -> tuple[Any, Any]:
    """The driver of containers in machines of their own, and the other one, for workloads that began before the option changed."""
    word, _, address = options.isolated_runtime.partition("=")
    microvm = load_class(MICROVM)(host, options.microvm_dir.absolute(), clock, machines)
    if word == "microvm":
        return microvm, load_class(KATA)(host, clock)
    kata = load_class(KATA)(host, clock, address or containerd or CONTAINERD, load_class(KATA_CLASS)(word))
    return kata, microvm


def read_pools(given: Sequence[str]) -> list[tuple[str, str]]:
    """``NAME=PATH`` or ``NAME=rbd:POOL`` of each pool. Raises InvalidInput."""
    pools: list[tuple[str, str]] = []
    for text in given:
        name, _, path = text.partition("=")
        check_name(name, "pool")
        if not path.startswith(("/", RBD)) or name in (LOCAL, *dict(pools)):
            raise InvalidInput(
                f"write NAME=PATH or NAME={RBD}POOL, with a unique name (not {LOCAL}) and an absolute path, not {text[:60]!r}",
                field="pool",
                hint=f"like fast=/mnt/nvme or ceph={RBD}weft",
            )
        pools.append((name, path))
    return pools


def _load_pool(host: Host, clock: Clock, name: str, place: str) -> Any:
    if place.startswith(RBD):
        return _load(CEPH_VOLUMES, host, clock, name, place.removeprefix(RBD))
    return _load(VOLUMES["directory"], host, clock, name, place)


def _load(place: str, host: Host, clock: Clock, *more: str) -> Any:
    """An instance of the driver class at ``module:class``."""
    cls = load_class(place)
    wants_clock = "clock" in cls.__init__.__annotations__
    return cls(host, clock, *more) if wants_clock else cls(host, *more)


def load_class(place: str) -> Any:
    """The class at ``module:class``. Imports that module alone."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _load_images(host: Host, clock: Clock, plain: Sequence[str]) -> Any:
    module = CONTAINER_IMAGES.partition(":")[0]
    settings = load_class(f"{module}:RegistrySettings")
    return load_class(CONTAINER_IMAGES)(
        host, registries={place: settings(plain_http=True) for place in plain}, clock=clock
    )
