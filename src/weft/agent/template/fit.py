"""Machines that may begin from a template, and how one that does differs from its plan at first. Pure."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
from msgspec.structs import replace

from weft.agent.image.cache import CachedImage
from weft.contracts.driver.runtime import GuestPlan
from weft.contracts.driver.template import RAM, STATE
from weft.kinds.allocation import LOCAL, AllocationSpec
from weft.kinds.parts.image.work import WarmOrder
from weft.objects.quantity import format_bytes

KEPT = "template/"  # of the uids under which pools keep their disks: no object's has a slash
MOST_PLUGGED = 4  # volumes and NICs beside the first one: a machine's spare ports


class TemplateOrder(msgspec.Struct, frozen=True):
    """A machine that this node shall keep. ``project``: only VMs there begin from it unless they must; "": all of them may."""

    order: WarmOrder
    cpu_model: str
    project: str = ""
    why: str = ""  # for people
    often: bool = False  # the node keeps it by itself


class Template(msgspec.Struct, frozen=True):
    """A template that is whole. ``key`` is what its machine depends on; ``snapshot`` keeps its disk in pool ``local``."""

    key: str
    image: str  # sha256
    cpu_model: str
    memory_bytes: int
    vcpus: int
    most_vcpus: int
    disk_bytes: int
    folder: str
    snapshot: str
    project: str = ""  # as TemplateOrder.project
    made_at: float = 0.0  # unix seconds; 0: by an earlier agent

    @property
    def state(self) -> str:
        return str(Path(self.folder) / STATE)

    @property
    def ram(self) -> str:
        return str(Path(self.folder) / RAM)


def refuse_any(spec: AllocationSpec, image: CachedImage) -> tuple[str, str]:
    """The field of its spec for which a VM can begin from no template, and why; "" if it can."""
    refused = {
        "machine": ("only machine q35 can begin from a booted machine", spec.machine != "q35"),
        "gpus": ("a booted machine has no GPUs", bool(spec.gpus)),
        "iso": ("a booted machine has no CD", spec.iso is not None),
        "screen": ("a booted machine has no screen", spec.screen == "yes"),
        "image": ("its image lacks weft's agent", not image.manifest.agent),
        "firmware": ("it boots by firmware", image.kernel is None or spec.firmware != "auto"),
        "pool": ("its root disk is not in pool local, where booted machines are", spec.pool != LOCAL),
        "networks": ("it has no network, and a booted machine has one", not spec.nics),
        "volumes": (
            f"a booted machine takes {MOST_PLUGGED} volumes and further networks at most",
            len(spec.nics) - 1 + len(spec.volumes) > MOST_PLUGGED,
        ),
        "user_data": (
            "its user data is for cloud-init, which runs in a boot",
            bool(spec.user_data) and not spec.user_data.startswith("#!"),
        ),
        "users": (
            "its image can't set up users and keys",
            bool(spec.users or spec.ssh_keys) and image.manifest.seed != "nocloud",
        ),
    }
    return next(((field, why) for field, (why, is_so) in refused.items() if is_so), ("", ""))


def fits(template: Template, spec: AllocationSpec) -> str:
    """Why this VM, which may begin from one, can't begin from this template; "" if it can."""
    if spec.boot != "warm" and template.project not in ("", spec.workload.project):
        return "the booted machine is for VMs of another project"
    if spec.resources.memory < template.memory_bytes:
        return f"it has less memory than the booted machine's {format_bytes(template.memory_bytes)}"
    if not template.vcpus <= max(1, math.ceil(spec.resources.cpu)) <= template.most_vcpus:
        return f"its cores are not within the booted machine's {template.vcpus}-{template.most_vcpus}"
    if spec.cpu_model != template.cpu_model:
        return "the booted machine has another CPU model"
    return ""


def shrink(plan: GuestPlan, template: Template) -> GuestPlan:
    """Shrink ``plan`` to what the machine in the template has; the rest is plugged in afterwards."""
    root = replace(plan.disks[0], size_bytes=template.disk_bytes)
    return replace(
        plan,
        vcpus=template.vcpus,
        memory_bytes=template.memory_bytes,
        disks=[root],
        nics=plan.nics[:1],
        memory=template.state,
        ram=template.ram,
    )
