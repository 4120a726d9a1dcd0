"""Pages say where things lie: each path below ``src/weft`` that the map, a recipe, a decision or CONTRIBUTING names is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from source import ROOT, SOURCE


def is_there(path: Path) -> bool:
    """Whether ``path`` is a file, or a folder with more than the compiled files of modules that moved away."""
    return path.is_file() or (
        path.name != "__pycache__" and path.is_dir() and any(is_there(inner) for inner in path.iterdir())
    )


ROOMS = sorted(path.name for path in SOURCE.iterdir() if path.is_dir() and is_there(path))
MAP = ROOT / "docs" / "map.md"
PAGES = [
    MAP,
    *(ROOT / "docs" / "recipes").glob("*.md"),
    *(ROOT / "docs" / "decisions").glob("*.md"),
    ROOT / "CONTRIBUTING.md",
]
PATH = re.compile(rf"(?<![\w./-])(?:src/weft/)?((?:{'|'.join(ROOMS)})/[\w./{{}},-]*)")
# Files of a server's state folder, and what make install builds.
NOT_OF_THE_SOURCE = ("gateway/events.db", "gateway/counts/", "gateway/logs/", "api/dashboard/site")
MADE_UP = ("/thing.py", "/thing/controller.py")  # what a recipe has its reader write


def spell_out(path: str) -> Iterator[str]:
    """``a/{b,c}.py`` is ``a/b.py`` and ``a/c.py``."""
    parts = [part.strip("{}").split(",") if part[:1] == "{" else [part] for part in re.split(r"(\{[^}]*\})", path)]
    return map("".join, product(*parts))


def find_lost(text: str) -> list[str]:
    named = {path.rstrip(".,") for found in PATH.findall(text) for path in spell_out(found)}
    return sorted(
        path
        for path in named
        if not path.startswith(NOT_OF_THE_SOURCE) and not path.endswith(MADE_UP) and not is_there(SOURCE / path)
    )


def test_every_path_that_a_page_names_is_there() -> None:
    lost = {str(page.relative_to(ROOT)): found for page in PAGES if (found := find_lost(page.read_text()))}
    assert not lost


def test_a_path_that_is_gone_is_found() -> None:
    text = "`agent/moving/`, `src/weft/kinds/{vm,pm}.py`, `api/app.py`, src/weft/controllers/thing.py, images/app."
    assert find_lost(text) == ["agent/moving/", "images/app", "kinds/pm.py"]


def test_a_folder_of_compiled_files_alone_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "migrated" / "__pycache__").mkdir(parents=True)
    (tmp_path / "migrated" / "__pycache__" / "old.cpython-311.pyc").touch()
    assert not is_there(tmp_path / "migrated")
    (tmp_path / "migrated" / "new.py").touch()
    assert is_there(tmp_path / "migrated")


def read_places(text: str) -> set[str]:
    """Each path of the map's tables, spelled out; ``…/name`` lies beside the path before it."""
    places: set[str] = set()
    for row in re.findall(r"^\| .*", text, re.M):
        before = ""
        for name in re.findall(r"`([\w./{},…]+)`", row):
            if name.startswith("…/"):
                name = f"{before.rpartition('/')[0]}{name[1:]}"
            if PATH.fullmatch(name):
                places |= {before := path.rstrip("/") for path in spell_out(name)}
    return places


def test_the_map_names_every_folder_with_more_than_four_hundred_lines() -> None:
    text = MAP.read_text()
    places = read_places(text)
    assert [place for place in sorted(places) if not is_there(SOURCE / place)] == []
    lines: dict[str, int] = {}
    for path in [*SOURCE.rglob("*.py"), *SOURCE.rglob("*.[ch]")]:
        folder = path.parent.relative_to(SOURCE).as_posix()
        lines[folder] = lines.get(folder, 0) + len(path.read_text().splitlines())
    large = {folder for folder, many in lines.items() if many > 400}
    places |= {path.rstrip(".,") for path in PATH.findall(text)}  # those of the walks, too
    assert sorted(one for one in large if not any(f"{place}/".startswith(f"{one}/") for place in places)) == []


def test_a_place_beside_another_is_spelled_out() -> None:
    text = "| a | `controllers/{volume,pool}`, `…/alert` | – | `agent/image/cache.py` |\n`edge/rule`"
    assert read_places(text) == {"agent/image/cache.py", "controllers/alert", "controllers/pool", "controllers/volume"}


def test_every_link_of_the_map_has_an_end() -> None:
    text = MAP.read_text()
    ends = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, re.M))
    used = set(re.findall(r"(?<!\])\[([^\]\[]+)\](?![(:\]])", text))
    assert used == ends.keys()
    assert [end for end in ends.values() if not is_there(MAP.parent / end)] == []


def test_the_map_has_every_room_and_counts_the_files_of_its_walks() -> None:
    text = MAP.read_text()
    assert sorted(re.findall(r"^\| `(\w+)/` \|", text, re.M)) == ROOMS
    for walk in text.split("\n## Walk: ")[1:]:
        said = re.search(r"(\d+) files", walk)
        numbers = [int(number) for number in re.findall(rf" (\d+) (?:{'|'.join(ROOMS)})/", walk)]
        assert said is not None and numbers == [*range(1, int(said[1]) + 1)], walk[:40]


def test_no_line_of_the_map_is_longer_than_a_screen() -> None:
    assert [line for line in MAP.read_text().splitlines() if len(line) > 200] == []
