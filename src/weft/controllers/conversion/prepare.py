"""Checks of a Conversion before it changes anything: the image is there, the spec can be translated, quota and node have capacity
for the new workload beside the old one. Then the new one is made and the old one stopped. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from weft.controllers.conversion.facts import ConversionFacts, ConversionOutcome, KnownImage, WorkloadFacts, end, strip
from weft.controllers.workload.ports import LOOK_SECONDS, may_answer_yet
from weft.kinds.container import ContainerSpec
from weft.kinds.conversion import ConversionStatus
from weft.kinds.image import OCI, ImageSpec, read_oci
from weft.kinds.parts.spec_conversion import Translated, refuse_elsewhere, to_container, to_vm
from weft.kinds.parts.workload import WorkloadSpec
from weft.kinds.quota import REASON
from weft.kinds.vm import VmSpec
from weft.objects.errors import InvalidInput
from weft.objects.identity import cut_name
from weft.objects.image.reference import read_source
from weft.objects.lifecycle import Phase


def prepare(facts: ConversionFacts) -> ConversionOutcome:
    """See that there is an image, then make the new workload and stop the old one."""
    status, old, now = facts.status, facts.old, facts.now
    assert old is not None
    if old.status.migration:
        message = f"migration/{old.status.migration} is migrating {old.what}; wait for it to end"
        return end(status, "Failed", "isMigrating", message, now)
    if facts.taken:
        message = f"{status.new} exists already; give the new workload another name (spec.new_name)"
        return end(status, "Failed", "nameTaken", message, now)
    if old.spec.run == "suspend":
        return end(status, "Failed", "suspended", f"{old.what} is suspended; resume or stop it first", now)
    image = _way_of(old).find_image(facts, old, old.spec)
    if isinstance(image, ConversionOutcome):
        return image
    status = replace(status, image=image.name, digest=image.digest or status.digest)
    translated = translate(facts, status, old, image)
    if isinstance(translated, str):
        return end(status, "Failed", "untranslatable", translated, now)
    excess = "" if facts.quota is None else facts.quota.describe_excess(facts.spec.to, translated.spec, old.user)
    if excess:
        return end(status, "Failed", REASON, f"{status.new} exceeds the quota while {old.what} is kept: {excess}", now)
    runs = old.spec.run == "run" and not old.spec.hold
    if runs and status.answered is None:
        status = _learn_answers(status, old, now)
        if status.answered is None:
            return ConversionOutcome(status=status, requeue_after=LOOK_SECONDS)
    if runs and (waiting := _find_capacity(facts, status, translated.spec)) is not None:
        return waiting
    status = replace(
        status,
        phase="Stopping",
        new_uid=facts.uid,
        was="run" if runs else "stop",
        left_out=[*translated.left_out, _way_of(old).left_behind],
        reason="",
        message="",
    )
    return ConversionOutcome(status=status, make=strip(translated.spec), old=replace(old.spec, run="stop"))


def _learn_answers(status: ConversionStatus, old: WorkloadFacts, now: float) -> ConversionStatus:
    """Note which of its published ports the old one answers, while it has them: there the new one has to answer, too."""
    asked_at = min(status.asked_at or now, now)
    if old.status.phase == Phase.RUNNING and may_answer_yet(old.ports, old.answers, now - asked_at):
        return replace(status, asked_at=asked_at, message=f"asks which of its published ports {old.what} answers")
    return replace(status, answered=[port for port in old.ports if old.answers.get(port)])


def _find_capacity(facts: ConversionFacts, status: ConversionStatus, spec: WorkloadSpec) -> ConversionOutcome | None:
    """Step to take until the scheduler has found a node with capacity for the new one beside the old one; None: it has."""
    answer = facts.answer
    if answer is None:
        return ConversionOutcome(
            status=replace(status, message=f"looking for a node with free capacity for {status.new}"), asks=spec
        )
    if not answer.given:
        return ConversionOutcome(status=status)
    if not answer.node:
        message = f"no node can take {status.new}: {answer.message or answer.reason}"
        return end(status, "Failed", answer.reason, message, facts.now)
    return None


def choose_image(images: tuple[KnownImage, ...], reference: str, digest: str) -> KnownImage | None:
    """An Image of that very container image: by its digest, or by its name where the digest isn't known."""
    wanted = read_source(reference)
    for image in images:
        if not image.url.startswith(OCI) or image.phase == "Failed" or "/" in image.name:
            continue
        found = read_oci(image.url)
        if (found.registry, found.name) != (wanted.registry, wanted.name):
            continue
        if digest in (image.digest, found.digest) if digest else found == wanted:
            return image
    return None


def _find_image_of_vm(facts: ConversionFacts, old: WorkloadFacts, spec: VmSpec) -> KnownImage | ConversionOutcome:
    """The Image of a VM, if a container can run it."""
    name = spec.image
    try:
        refuse_elsewhere(old.what, name)
    except InvalidInput as problem:
        return end(facts.status, "Failed", "notOci", f"{problem.message}; {problem.hint}", facts.now)
    image = next((one for one in facts.images if one.name == name), None)
    if image is None or not image.url.startswith(OCI) or not (image.digest or read_oci(image.url).digest):
        message = f"{old.what} stands on image {name}, which is not made from a container image; only oci:// images can be both"
        return end(facts.status, "Failed", "notOci", message, facts.now)
    return image if image.digest else replace(image, digest=read_oci(image.url).digest)


def _find_image_of_container(
    facts: ConversionFacts, old: WorkloadFacts, spec: ContainerSpec
) -> KnownImage | ConversionOutcome:
    """The Image of a container's own image, or the outcome while there isn't one."""
    status = facts.status
    reference = read_source(spec.image)
    digest = old.image or reference.digest
    if status.image:
        image = next((one for one in facts.images if one.name == status.image), None)
    else:
        image = choose_image(facts.images, spec.image, digest)
    if image is None:
        pinned = reference.place == "registry" and digest
        source = f"{reference.registry}/{reference.name}@{digest}" if pinned else str(reference)
        name = cut_name(old.what.partition("/")[2], f"-{facts.mark}")
        status = replace(status, image=name, made_image=True, digest=digest, message=f"image {name} is being created")
        return ConversionOutcome(
            status=status, image=(name, ImageSpec(url=f"{OCI}{source}", registry_secret=spec.registry_secret))
        )
    if image.phase == "Failed":
        outcome = end(status, "Failed", "imageFailed", f"image {image.name}: {image.message}", facts.now)
        outcome.image_goes = status.made_image
        return outcome
    if image.phase != "Available":
        return ConversionOutcome(
            status=replace(status, image=image.name, message=f"image {image.name} is being fetched")
        )
    return image


def _make_vm(
    facts: ConversionFacts, status: ConversionStatus, old: ContainerSpec, image: KnownImage
) -> Translated | str:
    return to_vm(old, status.image, memory=facts.spec.memory, disk=facts.spec.disk)


def _make_container(
    facts: ConversionFacts, status: ConversionStatus, old: VmSpec, image: KnownImage
) -> Translated | str:
    source = read_oci(image.url)
    named = f"{source.registry}/{source.name}@{status.digest}"
    if source.place == "held":
        named = source.name
        held = next((one for one in facts.images if one.name == named), None)
        if held is None or held.digest != status.digest:
            return f"image {named}, which {image.name} was made from, has changed or was deleted; add it again"
    return to_container(old, named, memory=facts.spec.memory, registry_secret=image.registry_secret)


class _Way(msgspec.Struct, frozen=True):
    """How one kind of workload is converted."""

    find_image: Callable[
        [ConversionFacts, WorkloadFacts, Any], KnownImage | ConversionOutcome
    ]  # given the old one's spec
    make: Callable[[ConversionFacts, ConversionStatus, Any, KnownImage], Translated | str]  # as well
    left_behind: str  # a sentence for people


_WAYS = {  # by the old one's kind
    "vm": _Way(
        _find_image_of_vm,
        _make_container,
        "the root disk is not copied: the new container starts from the image",
    ),
    "container": _Way(
        _find_image_of_container,
        _make_vm,
        "data outside its volumes is not copied: the new VM starts from the image",
    ),
}


def _way_of(old: WorkloadFacts) -> _Way:
    return _WAYS[old.what.partition("/")[0]]


def translate(
    facts: ConversionFacts, status: ConversionStatus, old: WorkloadFacts, image: KnownImage
) -> Translated | str:
    """The old one's spec as the other kind, or why it can't be that."""
    try:
        return _way_of(old).make(facts, status, old.spec, image)
    except InvalidInput as problem:
        return f"{problem.message}; {problem.hint}" if problem.hint else problem.message
