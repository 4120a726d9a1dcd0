"""The functions as the gateway knows them: the version behind each name, and the recipe of each version. Pure but for its caches.

Reads functions, their versions, the images that runtimes come from, the networks that they reach, and quotas, out of a view that
follows the store. A recipe is made when it is first needed, and forgotten when one of its sources changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import msgspec

from weft.contracts.driver.function import LATEST, Blob, Recipe
from weft.gateway.function.definition.recipe import Owner, make_recipe
from weft.informer.view import Changed, Item, View
from weft.kinds.function import FunctionActions, FunctionSpec, FunctionStatus, version_name, weights_of
from weft.kinds.function_version import FunctionVersionSpec, FunctionVersionStatus
from weft.kinds.image import ImageStatus
from weft.kinds.network import NetworkStatus
from weft.kinds.parts.function_code import BASES_PROJECT, FunctionCode, base_of, code_of
from weft.kinds.parts.goal import WRONG_IMAGE
from weft.kinds.parts.image.use import find_wrong_image
from weft.kinds.quota import QuotaSpec
from weft.objects.errors import NotFound, Unavailable
from weft.objects.identity import named_key, object_key
from weft.objects.image.reference import held_name

KINDS = ("function", "functionversion", "image", "network", "quota")


class Version(msgspec.Struct, frozen=True):
    """One version, ready to run."""

    code: FunctionCode
    recipe: Recipe


class Needed(msgspec.Struct, frozen=True):
    """The facts of other objects that a version needs."""

    base: Blob | None  # content of its runtime's image
    network: str  # uid; "": none
    digest: str = ""  # of an image that weft holds, with its archive
    archive: Blob | None = None


class Missing(msgspec.Struct, frozen=True):
    """Why an object isn't there yet; the message is for people."""

    reason: str
    message: str


class Function:
    """One function as it is now. ``versions`` are those with a recipe, by name ($LATEST, 3)."""

    __slots__ = ("asked", "item", "needs", "spec", "status", "versions")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.spec = item.spec(FunctionSpec)
        self.asked = item.actions(FunctionActions)
        self.status = item.status(FunctionStatus)
        self.versions: dict[str, Version] = {}
        self.needs = 0

    @property
    def uid(self) -> str:
        return self.item.uid

    @property
    def what(self) -> str:
        return f"function/{self.item.envelope.name}"


class Catalogue:
    """The functions of ``view``; ``notice`` gets its changes. ``draw`` gives a number from 0 up to 1, for aliases with weights."""

    def __init__(self, view: View, draw: Callable[[], float] = random.random) -> None:
        self._view = view
        self._draw = draw
        self._known: dict[tuple[str, str], Function] = {}  # by project and name, those that were found before
        self._needs = 0  # grows when an image or a network changes
        self._versions: dict[str, Version] = {}  # by digest, those whose recipes were made
        self._owners: dict[str, Owner] = {}  # by digest, what function_of gives
        self._concurrency: dict[str, int] = {}  # by project, what its quota allows

    def notice(self, changes: Sequence[Changed]) -> None:
        for change in changes:
            envelope = change.item.envelope
            project = envelope.project or ""
            if change.kind == "function":
                self._known.pop((project, envelope.name), None)
                owner = Owner(envelope.uid, change.item.spec(FunctionSpec).timeout, project)
                self._own(change.item.status(FunctionStatus), owner)
            elif change.kind == "functionversion":
                spec = change.item.spec(FunctionVersionSpec)
                self._known.pop((project, spec.function), None)
                if envelope.owner is not None:
                    owner = Owner(envelope.owner.uid, spec.timeout, project)
                    self._own(change.item.status(FunctionVersionStatus), owner)
            elif change.kind == "quota":
                most = None if change.new is None else change.new.spec(QuotaSpec).function_concurrency
                if most is None:
                    self._concurrency.pop(project, None)
                else:
                    self._concurrency[project] = most
            elif change.kind == "image" or (change.kind == "network" and _leads_elsewhere(change)):
                self._needs += 1

    def find(self, project: str, name: str) -> Function:
        """Raises NotFound (functionNotFound)."""
        known = self._known.get((project, name))
        if known is None:
            item = self._view.get(object_key("function", project, name))
            if item is None or item.deleting:
                raise NotFound(
                    f'function "{name[:80]}" not found in project {project[:80]}',
                    reason="functionNotFound",
                    hint="weft function list",
                )
            known = self._known[project, name] = Function(item)
        if known.needs != self._needs:
            known.needs = self._needs
            known.versions.clear()
        return known

    def resolve(self, function: Function, qualifier: str) -> Version:
        """The version that ``qualifier`` means, this time. Raises NotFound, and Unavailable (functionNotReady)."""
        name = self._name_version(function, qualifier)
        found = function.versions.get(name)
        if found is None:
            found = function.versions[name] = self._make(function, name)
        return found

    def recipe(self, digest: str) -> Recipe | None:
        """The recipe with this digest, if it was made."""
        version = self._versions.get(digest)
        return None if version is None else version.recipe

    def version_of(self, digest: str) -> Version | None:
        """The version of the recipe, if that was made."""
        return self._versions.get(digest)

    def find_concurrency(self, project: str) -> int | None:
        """How many invocations of all its functions the project's quota lets run at once; None: any number."""
        return self._concurrency.get(project)

    def function_of(self, digest: str) -> Owner | None:
        """The owner of a recipe; also if the recipe wasn't made yet."""
        return self._owners.get(digest)

    def specified(self, function: Function) -> Version | Missing:
        """The version of the present spec, ready or not; or why it has no recipe yet."""
        code = code_of(function.spec)
        needed = self._find_needed(function, code)
        if isinstance(needed, Missing):
            return needed
        return self._keep(function, LATEST, code, needed, _pinned(function, code))

    def pinned(self, function: Function, version: Version, digest: str) -> Version:
        """``version`` with the image of that digest, even if its tag changes."""
        recipe = version.recipe
        needed = Needed(recipe.base, recipe.network)
        return self._keep(function, recipe.version, version.code, needed, f"{recipe.image}@{digest}")

    def version_recipe(self, item: Item) -> Version | None:
        """The recipe of a published version; None if it can't be made yet, or its function is gone."""
        spec = item.spec(FunctionVersionSpec)
        try:
            function = self.find(item.envelope.project or "", spec.function)
            return self.resolve(function, str(spec.number))
        except (NotFound, Unavailable):
            return None

    def functions(self, project: str) -> list[Item]:
        """A project's functions, by name."""
        found = [i for i in self._view.of_kind("function").values() if i.envelope.project == project and not i.deleting]
        return sorted(found, key=lambda item: item.envelope.name)

    def versions(self, function: Function) -> list[Item]:
        """The published versions, oldest first."""
        found = [
            v
            for v in self._view.of_kind("functionversion").values()
            if v.envelope.owner is not None and v.envelope.owner.uid == function.uid and not v.deleting
        ]
        return sorted(found, key=lambda v: (len(v.envelope.name), v.envelope.name))

    def published(self, function: Function, qualifier: str) -> Item | None:
        """The FunctionVersion of a number; None for an alias or the newest. Raises NotFound."""
        if not qualifier:
            return None
        if qualifier.isdecimal():
            version = self._find_version(function, qualifier)
            if version is not None:
                return version
        elif qualifier in function.spec.aliases:
            return None
        raise NotFound(f"{function.what} has no version or alias {qualifier[:80]!r}", reason="functionNotFound")

    def _find_version(self, function: Function, number: str) -> Item | None:
        envelope = function.item.envelope
        item = self._view.get(object_key("functionversion", envelope.project, version_name(envelope.name, number)))
        return None if item is None or item.deleting else item

    def _name_version(self, function: Function, qualifier: str) -> str:
        if qualifier in ("", LATEST) or qualifier.isdecimal():
            return qualifier or LATEST
        weights = weights_of(function.spec, qualifier)
        if weights is None:
            raise NotFound(
                f'{function.what} has no alias "{qualifier[:80]}"',
                reason="functionNotFound",
                hint="a version's number, or an alias: weft function alias NAME lists them",
            )
        return _pick(weights.items(), self._draw())

    def _make(self, function: Function, name: str) -> Version:
        code: FunctionCode | None
        if name == LATEST:
            code = function.status.serving
            if code is None:
                status = function.status
                why = f": {status.reason}: {status.message}" if status.reason else ""
                raise Unavailable(
                    f"{function.what} is not ready ({status.phase}){why}",
                    reason="functionNotReady",
                    hint=f"weft describe {function.what}",
                    retry_after_seconds=1.0,
                )
        else:
            item = self._find_version(function, name)
            if item is None:
                raise NotFound(f"{function.what} has no version {name[:20]}", reason="functionNotFound")
            code = code_of(item.spec(FunctionVersionSpec))
        needed = self._find_needed(function, code)
        if isinstance(needed, Missing):
            raise Unavailable(f"{function.what}: {needed.message}", reason="functionNotReady", retry_after_seconds=5.0)
        return self._keep(function, name, code, needed, function.status.image if name == LATEST else "")

    def _keep(self, function: Function, name: str, code: FunctionCode, needed: Needed, image: str) -> Version:
        envelope = function.item.envelope
        if needed.archive is not None:
            image = f"{code.image}@{needed.digest}"
        recipe = make_recipe(
            function.uid,
            envelope.project or "",
            envelope.name,
            name,
            code,
            needed.base,
            image,
            needed.network,
            needed.archive,
        )
        self._owners[recipe.digest] = Owner(function.uid, code.timeout, recipe.project)
        version = self._versions.get(recipe.digest)
        if version is None or version.code != code:  # its placement may be specified otherwise
            version = self._versions[recipe.digest] = Version(code, recipe)
        return version

    def _own(self, status: FunctionStatus | FunctionVersionStatus, owner: Owner) -> None:
        if status.digest:
            self._owners[status.digest] = owner

    def forget(self, digest: str) -> None:
        """Drop a recipe that nothing uses any more."""
        self._versions.pop(digest, None)
        self._owners.pop(digest, None)

    def _find_needed(self, function: Function, code: FunctionCode) -> Needed | Missing:
        base, network = self._find_base(function, code), self._find_network(function, code)
        held = self._find_held(function, code)
        for found in (base, network, held):
            if isinstance(found, Missing):
                return found
        assert not isinstance(base, Missing) and not isinstance(network, Missing) and not isinstance(held, Missing)
        uid = network.uid if network is not None else ""
        if held is None:
            return Needed(base, uid)
        status = held.status(ImageStatus)
        return Needed(base, uid, status.digest, Blob(status.sha256, status.size, code.image))

    def _find_network(self, function: Function, code: FunctionCode) -> Item | Missing | None:
        if not code.network:
            return None
        item = self._view.get(object_key("network", function.item.envelope.project, code.network))
        if item is None or item.deleting:
            return Missing("networkNotReady", f"network {code.network} does not exist")
        if not item.status(NetworkStatus).vni:
            return Missing("networkNotReady", f"network {code.network} is being created")
        return item

    def _find_held(self, function: Function, code: FunctionCode) -> Item | Missing | None:
        """The Image that weft holds, if the code names one."""
        name = held_name(code.image)
        if not name:
            return None
        item = self._view.get(named_key("image", function.item.envelope.project, name))
        if item is None or item.deleting:
            return Missing("imageNotReady", f"image {name} does not exist; weft image add {name} FILE.tar")
        status = item.status(ImageStatus)
        if status.phase == "Failed":
            return Missing("imageFailed", f"image {name}: {status.message or status.reason}")
        if status.phase != "Available":
            return Missing("imageNotReady", f"image {name} is being fetched")
        wrong = find_wrong_image(name, status, "function")
        if wrong is not None:
            return Missing(WRONG_IMAGE, ": ".join(wrong))
        return item

    def _find_base(self, function: Function, code: FunctionCode) -> Blob | Missing | None:
        name = base_of(code)
        if not name:
            return None
        for project in dict.fromkeys((function.item.envelope.project, BASES_PROJECT)):
            item = self._view.get(object_key("image", project, name))
            if item is None or item.deleting:
                continue
            status = item.status(ImageStatus)
            if status.phase == "Available":
                return Blob(status.sha256, status.size, name)
            why = f": {status.message or status.reason}" if status.phase == "Failed" else ""
            return Missing("baseNotReady", f"image {name}, which {_whose(code)} is made from, is {status.phase}{why}")
        return Missing(
            "baseNotReady", f"{_whose(code)} needs image {name}, which does not exist; weft image build {name}"
        )


def _whose(code: FunctionCode) -> str:
    return "its machine's kernel" if code.image else f"runtime {code.runtime}"


def _pinned(function: Function, code: FunctionCode) -> str:
    """The digest of ``code``'s image, if the ready recipe has the same image; "" if it isn't known, or is asked for anew."""
    status = function.status
    is_same = status.serving is not None and status.serving.image == code.image
    known = is_same and status.pulls == function.asked.pulls
    return status.image if known else ""


def _leads_elsewhere(change: Changed) -> bool:
    """Whether a network came, went or became ready: most of its changes are only of its count of addresses."""
    before, after = (
        None if item is None else (item.uid, item.deleting, bool(item.status(NetworkStatus).vni))
        for item in (change.old, change.new)
    )
    return before != after


def _pick(weights: Iterable[tuple[str, float]], drawn: float) -> str:
    """The version with the share that ``drawn`` falls into."""
    found, reached = "", 0.0
    for name, share in weights:
        found, reached = name, reached + share
        if drawn < reached:
            break
    return found
