"""The images weft can build itself, by name, and where a built one is kept: under its recipe's digest, so that a changed
recipe is another file and the same one is built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from weft.images import parts
from weft.images.busybox.build import build_busybox
from weft.images.debian.build import build_debian
from weft.images.python.build import build_python
from weft.images.tiny.build import build_tiny
from weft.images.turn import take_turn
from weft.objects.errors import NotFound

Report = Callable[[str], None]  # gets the name of the next step


class Recipe(NamedTuple):
    """``folder`` has its sources, ``also`` those that it shares; ``build(out, cache, report)`` writes the bundle ``out`` in one
    rename."""

    folder: str
    build: Callable[[Path, Path, Report], None]
    also: tuple[str, ...] = ()


RECIPES = {
    "busybox": Recipe("busybox", build_busybox),
    "debian-12": Recipe("debian", build_debian),
    "python3-11": Recipe("python", build_python, ("clone",)),
    "tiny": Recipe("tiny", build_tiny),
}


def find_bundle(name: str, cache: Path) -> Path:
    """Find where image ``name`` of this recipe lies in ``cache``, built or not. Raises NotFound for one without a recipe."""
    recipe = RECIPES.get(name)
    if recipe is None:
        raise NotFound(f"no recipe for an image {name[:60]!r}", hint=f"there are {', '.join(sorted(RECIPES))}")
    digest = parts.digest_recipe(*(Path(__file__).parent / folder for folder in (recipe.folder, *recipe.also)))
    return cache / f"{name}-{digest[:12]}.tar"


def ensure_bundle(name: str, cache: Path, report: Report, *, fresh: bool = False) -> Path:
    """The bundle of image ``name``, built unless ``cache`` has it (``fresh``: built anyhow), or another process builds it just
    now. Raises NotFound, DriverFailed."""
    bundle = find_bundle(name, cache)
    if fresh or not bundle.exists():
        with take_turn(bundle, report):
            if fresh or not bundle.exists():
                RECIPES[name].build(bundle, cache, report)
    return bundle
