"""The tree of a package below ``/usr/lib/weft``: weft's source, and beside it the Python packages that it needs, as the clone's
``.venv`` has them: those of requirements.lock, whose hashes were checked when they were installed. So nothing is downloaded.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "weft"
# Of a package nothing that only its own tests, a compiler or a type checker reads.
_LEFT_OUT = re.compile(
    r"(^|/)(tests?|__pycache__|testing|_pyinstaller|f2py|include)(/|$)|\.(pyc|pyi|pyx|pxd|c|h|a|lib)$|^\.\./"
)
_KEPT = re.compile(r"^numpy/(testing|_core/tests/_natype)")  # which numpy imports
_NAME = re.compile(r"[\w.-]+")


def list_needed(extras: Iterable[str]) -> list[Distribution]:
    """The distributions that weft needs with ``extras``, and what these need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    found = dict[str, Distribution]()
    while asked:
        needs, _, marker = asked.pop().partition(";")
        match = _NAME.match(needs)
        if match is not None and match[0] not in found and _holds(marker):
            found[match[0]] = distribution(match[0])
            asked += found[match[0]].requires or []
    return [found[name] for name in sorted(found, key=str.lower)]


def _holds(marker: str) -> bool:
    """Whether an environment marker without an extra holds for CPython 3.11 on Linux; of those that occur."""
    others = re.findall(r"(==|!=|<) *['\"](?:win32|Windows|PyPy|emscripten|darwin|3\.\d+)", marker)
    return "extra" not in marker and all(sign == "!=" for sign in others)


def copy_source(target: Path, rooms: Iterable[str]) -> None:
    """weft's source: these rooms (folders or files), or all of it for ``.``."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".weft-built")
    if "." in rooms:
        shutil.copytree(SOURCE, target / "weft", ignore=ignored)
        return
    for room in ("__init__.py", *rooms):
        place = target / "weft" / room
        place.parent.mkdir(parents=True, exist_ok=True)
        if (SOURCE / room).is_dir():
            shutil.copytree(SOURCE / room, place, ignore=ignored)
        else:
            shutil.copy(SOURCE / room, place)


def copy_distribution(target: Path, found: Distribution) -> None:
    """What a distribution installed, with its metadata, which says its name, version and licence."""
    for file in found.files or []:
        path = str(file)
        if (not _LEFT_OUT.search(path) or _KEPT.search(path)) and "RECORD" not in path and not path.startswith("bin/"):
            place = target / path
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.locate_file(file), place)


def strip(target: Path) -> None:
    """Take what only debuggers read out of the libraries; not of those that a wheel carries along (its ``.libs``),
    whose pages strip doesn't align."""
    libraries = sorted(map(str, _list_libraries(target)))
    if libraries:
        subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)


def _list_libraries(target: Path) -> Iterator[Path]:
    for path in target.rglob("*"):
        if (
            ".libs/" not in str(path)
            and path.is_file()
            and re.search(r"\.so(\.|$)", path.name)
            and path.read_bytes()[:4] == b"\x7fELF"
        ):
            yield path
