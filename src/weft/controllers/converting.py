"""What a Conversion needs next: its wish, its status and what is known of both workloads in; their new specs and the status that
follows out. Pure, and remembers nothing: whoever is asked after a crash answers as the one before would have.

The order: the image is there, the new one made and the old one stopped, in one commit · the old one rests: all that it had is the
new one's, in one commit · its place has let go: the new one starts · it is well: people look at it, and confirm or undo. Until
then whatever fails goes back the same way: the new one is stopped, and gives all back in one commit.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from weft.kinds.container import ContainerSpec
from weft.kinds.conversion import ENDED, ConversionSpec, ConversionStatus, read_new
from weft.kinds.image import OCI, ImageSpec, read_oci
from weft.kinds.translation import Translated, to_container, to_vm
from weft.kinds.vm import VmSpec
from weft.kinds.workload import WorkloadSpec, WorkloadStatus
from weft.kinds.workload_wish import REFUSALS
from weft.objects.errors import InvalidInput
from weft.objects.identity import MAX_NAME
from weft.objects.image_reference import read_source
from weft.objects.lifecycle import Phase

PLACE_PATIENCE_SECONDS = 20.0
# What only one of two workloads can have at a time, and lies in the way of the other: NICs, ports, volumes, places in groups.
_SHARED = ("networks", "publish", "affinity_groups", "anti_affinity_groups", "spread")


class Place(msgspec.Struct, frozen=True):
    """One allocation: ``rests``, as its node says, stopped as it was asked to; ``holds`` volumes or NICs."""

    rests: bool
    holds: bool


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of both workloads. ``healthy`` None: nobody asks it. ``image`` is the digest (sha256:…) that it runs, as far as its node
    has said."""

    what: str
    wish: WorkloadSpec
    status: WorkloadStatus
    generation: int
    places: tuple[Place, ...] = ()
    deleting: bool = False
    healthy: bool | None = None
    image: str = ""


class KnownImage(msgspec.Struct, frozen=True):
    """An Image of the project."""

    name: str
    url: str
    phase: str
    digest: str = ""
    message: str = ""
    registry_secret: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """``old`` and ``new`` None: it isn't there (any more). ``taken``: another object has the new one's name. ``rival``: an older
    Conversion of either. ``mark`` tells the name of an Image from others', ``uid`` is a fresh one."""

    spec: ConversionSpec
    status: ConversionStatus
    old: Side | None
    new: Side | None
    images: tuple[KnownImage, ...] = ()
    old_uid: str = ""
    taken: bool = False
    rival: str = ""
    deleting: bool = False
    mark: str = ""
    uid: str = ""
    now: float = 0.0


class Outcome(msgspec.Struct, kw_only=True):
    """``old`` and ``new``: specs to write, ``make`` that of a new one; those that ``go`` are deleted. ``claims``: whose addresses
    and published ports are to be from now on. ``look_after`` seconds it is to be looked at again whatever happens."""

    status: ConversionStatus
    old: WorkloadSpec | None = None
    new: WorkloadSpec | None = None
    make: WorkloadSpec | None = None
    image: tuple[str, ImageSpec] | None = None
    claims: Literal["", "new", "old"] = ""
    old_goes: bool = False
    new_goes: bool = False
    image_goes: bool = False
    look_after: float | None = None


def plan_conversion(facts: Facts) -> Outcome:
    """What to write now; the status alone where there is nothing else."""
    status, now = facts.status, facts.now
    if status.phase in ENDED:
        return Outcome(status=status)
    if status.began_at is None:
        status = replace(status, phase="Preparing", began_at=now, old_uid=facts.old_uid)
        status.new = "/".join(read_new(facts.spec))
        if facts.rival:
            return _end(status, "Failed", "alreadyConverting", f"conversion/{facts.rival} goes first", now)
    status = replace(status, began_at=min(status.began_at or now, now))  # a clock may have been set back
    facts = replace(facts, status=status)
    handed = status.kept is not None
    if handed and (facts.old is None or facts.old.deleting):
        return _keep_new(facts)
    if not status.ending:
        status = replace(status, **_find_end(facts))
        facts = replace(facts, status=status)
    if status.ending:
        return _hand_back(facts) if handed else _clear(facts)
    steps = {"Preparing": _prepare, "Stopping": _stop, "HandingOver": _start, "Starting": _watch}
    outcome = steps.get(status.phase, _await)(facts)
    if outcome.status.phase in steps:
        refused = facts.new is not None and _finds_no_place(facts, facts.new)
        outcome.look_after = max(0.1, min(_time_left(facts), _patience_left(facts) if refused else float("inf")))
    return outcome


def strip(wish: WorkloadSpec) -> WorkloadSpec:
    """It, without what only one can have."""
    return replace(wish, **{name: [] for name in _given(wish)})


def keep(wish: WorkloadSpec) -> dict[str, Any]:
    """What ``strip`` takes away."""
    return {name: getattr(wish, name) for name in _given(wish)}


def _given(wish: WorkloadSpec) -> tuple[str, ...]:
    return (*_SHARED, "mounts" if isinstance(wish, ContainerSpec) else "volumes")


def choose_image(images: tuple[KnownImage, ...], reference: str, digest: str) -> KnownImage | None:
    """An Image of that very container image: of its digest, or where nobody knows that of its name."""
    wanted = read_source(reference)
    for image in images:
        if not image.url.startswith(OCI) or image.phase == "Failed":
            continue
        found = read_oci(image.url)
        if (found.registry, found.name) != (wanted.registry, wanted.name):
            continue
        if digest in (image.digest, found.digest) if digest else found == wanted:
            return image
    return None


def _find_end(facts: Facts) -> dict[str, str]:
    """Why it goes back, if so: the fields of its status that say it."""
    status, spec, new = facts.status, facts.spec, facts.new
    if spec.undo or facts.deleting:
        return _why("Undone", "undone", "asked for")
    if facts.old is None or facts.old.deleting:
        return _why("Failed", "workloadDeleted", f"{spec.workload} is gone")
    if status.new_uid and (new is None or new.deleting):
        return _why("Failed", "workloadDeleted", f"{status.new} was deleted")
    if status.phase == "AwaitingConfirmation":
        return {}
    if status.phase == "Starting" and new is not None and new.status.ended:
        code = "" if new.status.exit_code is None else f", exit code {new.status.exit_code}"
        return _why("Failed", "ended", f"{status.new} ended by itself{code}: {new.status.message}".rstrip(": "))
    if new is not None and _finds_no_place(facts, new) and _patience_left(facts) <= 0:
        return _why("Failed", new.status.reason, f"{status.new} finds no place: {new.status.message}")
    if _time_left(facts) <= 0:
        stuck = f" ({status.message})" if status.message else ""
        return _why("Failed", "timedOut", f"{status.new} doesn't run after {spec.timeout_seconds:g} s{stuck}")
    return {}


def _why(ending: str, reason: str, message: str) -> dict[str, str]:
    return {"ending": ending, "reason": reason, "message": message}


def _time_left(facts: Facts) -> float:
    return (facts.status.began_at or 0.0) + facts.spec.timeout_seconds - facts.now


def _finds_no_place(facts: Facts, new: Side) -> bool:
    """Nothing runs meanwhile: room that may come some day isn't waited for."""
    return facts.status.phase == "Starting" and new.status.phase == Phase.PENDING and new.status.reason in REFUSALS


def _patience_left(facts: Facts) -> float:
    return min(facts.status.stopped_at or facts.now, facts.now) + PLACE_PATIENCE_SECONDS - facts.now


def _end(
    status: ConversionStatus, phase: Literal["Confirmed", "Undone", "Failed"], reason: str, message: str, now: float
) -> Outcome:
    return Outcome(status=replace(status, phase=phase, ending="", reason=reason, message=message, ended_at=now))


def _prepare(facts: Facts) -> Outcome:
    """Nothing has changed yet: see that there is an image, then make the new one and stop the old one."""
    status, old, now = facts.status, facts.old, facts.now
    assert old is not None
    if old.status.migration:
        return _end(status, "Failed", "isMoving", f"{old.what} is moved by migration/{old.status.migration}", now)
    if facts.taken:
        message = f"{status.new} exists already: give the new one another name (spec.new_name)"
        return _end(status, "Failed", "nameTaken", message, now)
    if old.wish.run == "suspend":
        return _end(status, "Failed", "suspended", f"{old.what} is suspended: resume or stop it first", now)
    image = _find_image(facts)
    if isinstance(image, Outcome):
        return image
    status = replace(status, image=image.name, digest=image.digest or status.digest)
    translated = _translate(facts, status, old.wish, image)
    if isinstance(translated, str):
        return _end(status, "Failed", "untranslatable", translated, now)
    runs = old.wish.run == "run" and not old.wish.hold
    status = replace(
        status,
        phase="Stopping",
        new_uid=facts.uid,
        was="run" if runs else "stop",
        left_out=[*translated.left_out, _left_behind(old.wish)],
        reason="",
        message="",
    )
    return Outcome(status=status, make=strip(translated.spec), old=replace(old.wish, run="stop"))


def _left_behind(wish: WorkloadSpec) -> str:
    what = "what it wrote outside its volumes" if isinstance(wish, ContainerSpec) else "what its root disk holds"
    return f"{what} isn't taken along: the new one begins as the image is"


def _find_image(facts: Facts) -> KnownImage | Outcome:
    """The Image that both stand on, or what is to be done or said as long as there is none."""
    status, old, now = facts.status, facts.old, facts.now
    assert old is not None
    if isinstance(old.wish, VmSpec):
        name = old.wish.image
        image = next((one for one in facts.images if one.name == name), None)
        if image is None or not image.url.startswith(OCI) or not (image.digest or read_oci(image.url).digest):
            message = f"{old.what} stands on image {name}, which is made of no container image: only oci:// images can be both"
            return _end(status, "Failed", "notOci", message, now)
        return image if image.digest else replace(image, digest=read_oci(image.url).digest)
    assert isinstance(old.wish, ContainerSpec)
    reference = read_source(old.wish.image)
    digest = old.image or reference.digest
    if status.image:
        image = next((one for one in facts.images if one.name == status.image), None)
    else:
        image = choose_image(facts.images, old.wish.image, digest)
    if image is None:
        pinned = reference.place == "registry" and digest
        source = f"{reference.registry}/{reference.name}@{digest}" if pinned else str(reference)
        name = f"{old.what.partition('/')[2][: MAX_NAME - 1 - len(facts.mark)]}-{facts.mark}"
        status = replace(status, image=name, made_image=True, digest=digest, message=f"image {name} is being made")
        return Outcome(
            status=status, image=(name, ImageSpec(url=f"{OCI}{source}", registry_secret=old.wish.registry_secret))
        )
    if image.phase == "Failed":
        message = f"image {image.name}: {image.message}"
        outcome = _end(status, "Failed", "imageFailed", message, now)
        outcome.image_goes = status.made_image
        return outcome
    if image.phase != "Available":
        return Outcome(status=replace(status, image=image.name, message=f"image {image.name} is being fetched"))
    return image


def _translate(facts: Facts, status: ConversionStatus, wish: WorkloadSpec, image: KnownImage) -> Translated | str:
    """What the old one is as the other kind, or why it can't be."""
    spec = facts.spec
    try:
        if isinstance(wish, ContainerSpec):
            return to_vm(wish, status.image, memory=spec.memory, disk=spec.disk)
        assert isinstance(wish, VmSpec)
        source = read_oci(image.url)
        named = f"{source.registry}/{source.name}@{status.digest}"
        if source.place == "held":
            named = source.name
            held = next((one for one in facts.images if one.name == named), None)
            if held is None or held.digest != status.digest:
                return f"image {named}, which {image.name} was made of, is another one by now, or gone: add it again"
        return to_container(wish, named, memory=spec.memory, registry_secret=image.registry_secret)
    except InvalidInput as problem:
        return f"{problem.message}; {problem.hint}" if problem.hint else problem.message


def _stop(facts: Facts) -> Outcome:
    """The old one is to rest; then all that it had is the new one's, in one commit."""
    status, old, new = facts.status, facts.old, facts.new
    assert old is not None and new is not None
    if old.wish.run != "stop":  # by somebody who asked no one
        return Outcome(status=status, old=replace(old.wish, run="stop"))
    if not all(place.rests for place in old.places):
        message = f"waits until {old.what} has stopped"
        if old.status.phase == Phase.UNKNOWN:
            message += f": {old.status.message}"
        return Outcome(status=replace(status, message=message))
    image = next((one for one in facts.images if one.name == status.image), KnownImage(status.image, "", "Failed"))
    translated = _translate(facts, status, old.wish, image)
    if isinstance(translated, str):
        facts = replace(facts, status=replace(status, **_why("Failed", "untranslatable", translated)))
        return _clear(facts)
    status = replace(status, phase="HandingOver", kept=keep(old.wish), message="")
    status.stopped_at = facts.now if status.was == "run" else None
    taken = replace(new.wish, **keep(translated.spec))
    return Outcome(status=status, old=strip(old.wish), new=taken, claims="new")


def _start(facts: Facts) -> Outcome:
    """The old one's place lets go of volumes and NICs; then the new one may have them."""
    status, old, new = facts.status, facts.old, facts.new
    assert old is not None and new is not None
    if any(place.holds for place in old.places):
        return Outcome(status=replace(status, message=f"waits until {old.what} has let go of what it had"))
    if status.was != "run":
        return _ask(facts, f"{status.new} is stopped, as {old.what} was")
    return Outcome(status=replace(status, phase="Starting", message=""), new=replace(new.wish, run="run"))


def _watch(facts: Facts) -> Outcome:
    """The new one starts: whoever follows hears what it waits for."""
    status, new = facts.status, facts.new
    assert new is not None
    if is_well(new):
        return _ask(replace(facts, status=replace(status, running_at=facts.now)), f"{status.new} runs")
    told = new.status.message or new.status.reason
    return Outcome(
        status=replace(status, message=f"{status.new} is {new.status.phase}" + (f": {told}" if told else ""))
    )


def is_well(side: Side) -> bool:
    """Whether it runs and answers as it was asked to last."""
    status = side.status
    return (
        status.phase == Phase.RUNNING
        and status.observed_generation >= side.generation
        and status.ready is not False
        and side.healthy is not False
    )


def _ask(facts: Facts, fact: str) -> Outcome:
    message = f"{fact}; {facts.spec.workload} is kept, stopped, until this is confirmed"
    return Outcome(status=replace(facts.status, phase="AwaitingConfirmation", reason="", message=message))


def _await(facts: Facts) -> Outcome:
    status = facts.status
    if not facts.spec.confirm:
        return Outcome(status=status)
    message = f"{facts.spec.workload} is gone, {status.new} goes on"
    outcome = _end(replace(status, kept=None), "Confirmed", "", message, facts.now)
    outcome.old_goes = True
    return outcome


def _keep_new(facts: Facts) -> Outcome:
    """There is nobody to give anything back to: the new one keeps it."""
    status, new = facts.status, facts.new
    if new is None:
        return _end(status, "Failed", "workloadDeleted", "both are gone", facts.now)
    message = f"{facts.spec.workload} is gone, {status.new} goes on"
    outcome = _end(replace(status, kept=None), "Confirmed", "workloadDeleted", message, facts.now)
    wanted: Literal["run", "stop"] = "run" if status.was == "run" else "stop"
    if not new.deleting and new.wish.run != wanted:
        outcome.new = replace(new.wish, run=wanted)
    return outcome


def _hand_back(facts: Facts) -> Outcome:
    """The new one is stopped; then all is the old one's again, in one commit."""
    status, old, new = replace(facts.status, phase="Undoing"), facts.old, facts.new
    assert old is not None and status.kept is not None
    given_back = replace(status, kept=None)
    has_again = msgspec.convert({**msgspec.to_builtins(old.wish), **status.kept}, type(old.wish))
    if new is None:
        return Outcome(status=given_back, old=has_again, claims="old")
    if not new.deleting and new.wish.run != "stop":
        return Outcome(status=status, new=replace(new.wish, run="stop"))
    if new.deleting or not all(place.rests for place in new.places):
        return Outcome(status=status)
    return Outcome(status=given_back, old=has_again, new=strip(new.wish), claims="old")


def _clear(facts: Facts) -> Outcome:
    """Nothing of the old one's is the new one's (any more): that goes, and the old one runs again if it did."""
    status, old, new = facts.status, facts.old, facts.new
    if new is not None and any(place.holds for place in new.places):
        return Outcome(status=replace(status, phase="Undoing"))
    ending: Literal["Undone", "Failed"] = "Undone" if status.ending == "Undone" else "Failed"
    outcome = _end(status, ending, status.reason, status.message, facts.now)
    if status.was and old is not None and not old.deleting and old.wish.run != status.was:
        outcome.old = replace(old.wish, run=status.was)
    outcome.new_goes = new is not None and not new.deleting
    image = next((one for one in facts.images if one.name == status.image), None)
    outcome.image_goes = status.made_image and image is not None and image.phase != "Available"
    return outcome
