"""One word per idea: the old ones, in ``glossary.txt``, occur no oftener than they did when they were counted last.

Run as a program it lowers the counts there to what there is now.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from source import FILES, ROOT, SOURCE, nodes_of, text_of

TABLE = Path(__file__).with_name("glossary.txt")
NOT_OURS = ("measured.md", "measured-archive.md")  # a program writes them
NOWHERE = "nowhere"
TESTS = "tests"
GOOD_NO = re.compile(r"\bthere (is|are|was|were) no\b|\b(is|are) no (longer|more)\b")
IN_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # readWish, READ_WISH and read-wish alike


class Row(NamedTuple):
    old: tuple[str, ...]
    now: str
    counted: str
    where: str  # "in agent api", "not in pages", or all but tests
    allowed: dict[str, int]  # by area: a room, or a folder of docs

    def is_in(self, area: str) -> bool:
        if area == TESTS:  # only what a row says of them
            return self.where == f"in {TESTS}"
        return not self.where or (area in self.where.split()) is self.where.startswith("in ")

    def count(self, path: Path) -> int:
        if self.counted == "name" and not any(old in lowered(path) for old in self.old):
            return 0  # without parsing it
        found = COUNTED[self.counted](path)
        return sum(found.count(old) if isinstance(found, str) else found[old] for old in self.old)


def read_rows(text: str) -> list[Row]:
    rows = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            old, now, counted, allowed = (cell.strip() for cell in line.split(" |"))
            counted, _, where = counted.partition(" ")
            words = old.split("; ") if counted in ("phrase", "message") else old.split()
            pairs = (pair.split() for pair in allowed.removeprefix(NOWHERE).split(",") if pair)
            rows.append(Row(tuple(words), now, counted, where, {area: int(count) for area, count in pairs}))
    return rows


@cache
def lowered(path: Path) -> str:
    return text_of(path).lower()


def find_words(text: str) -> Counter[str]:
    return Counter(word.lower() for word in IN_WORDS.findall(text))


def place_of(path: Path) -> str:
    return path.relative_to(SOURCE if path.is_relative_to(SOURCE) else ROOT).with_suffix("").as_posix()


def find_names(path: Path) -> Iterator[str]:
    if path.suffix == ".py":
        for node in nodes_of(path, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.arg):
            yield node.arg if isinstance(node, ast.arg) else node.name


@cache
def count_words(path: Path) -> Counter[str]:
    return find_words(text_of(path)) + count_files(path)


@cache
def count_files(path: Path) -> Counter[str]:
    return find_words(place_of(path))


@cache
def count_names(path: Path) -> Counter[str]:
    return find_words(" ".join(find_names(path)))


@cache
def count_classes(path: Path) -> Counter[str]:
    return Counter(node.name for node in nodes_of(path, ast.ClassDef)) if path.suffix == ".py" else Counter()


@cache
def count_parameters(path: Path) -> Counter[str]:
    return Counter(node.arg for node in nodes_of(path, ast.arg)) if path.suffix == ".py" else Counter()


@cache
def read_sentences(path: Path) -> str:
    return " ".join(text_of(path).lower().split())


def find_messages(path: Path) -> Iterator[str]:
    """What people read: a page without the targets of its links; of code the strings that aren't docstrings."""
    if path.suffix == ".md":
        yield re.sub(r"\]\([^)]*\)", "]", text_of(path))
    elif path.suffix == ".py":
        documented = nodes_of(path, ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = {id(node.body[0].value) for node in documented if node.body and isinstance(node.body[0], ast.Expr)}
        for node in nodes_of(path, ast.Constant):
            if isinstance(node.value, str) and id(node) not in docstrings:
                yield node.value


@cache
def count_messages(path: Path) -> Counter[str]:
    """Words and pairs of words; "there is no node" and "is no longer" are good English."""
    found: Counter[str] = Counter()
    for text in find_messages(path):
        words = re.findall(r"\w+", GOOD_NO.sub(" ", " ".join(text.lower().split())))
        found.update(words)
        for length in (2, 3):
            found.update(" ".join(group) for group in zip(*(words[n:] for n in range(length)), strict=False))
    return found


COUNTED: dict[str, Callable[[Path], Counter[str] | str]] = {
    "word": count_words,
    "phrase": read_sentences,
    "message": count_messages,
    "name": count_names,
    "class": count_classes,
    "parameter": count_parameters,
    "file": count_files,
}


@cache
def area_of(path: Path) -> str:
    if path.is_relative_to(SOURCE):
        return path.relative_to(SOURCE).parts[0].removesuffix(".py")
    inside = path.relative_to(ROOT).parts
    if inside[0] == TESTS:
        return TESTS
    return inside[1] if len(inside) > 2 else "pages"


def find_files() -> Iterable[Path]:
    texts = [path for path in SOURCE.rglob("*") if path.suffix in (".py", ".c", ".h")]
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING"))]
    tests = [path for path in (ROOT / TESTS).rglob("*.py") if path.parent != TABLE.parent]
    return sorted(path for path in [*texts, *pages, *tests] if path.name not in NOT_OURS)


def measure(row: Row, files: Iterable[Path]) -> dict[str, int]:
    """How often the row's old words occur now, by area."""
    found: Counter[str] = Counter()
    for path in files:
        if row.is_in(area := area_of(path)):
            found[area] += row.count(path)
    return {area: count for area, count in sorted(found.items()) if count}


ROWS = read_rows(TABLE.read_text())


def test_no_old_word_comes_back() -> None:
    files, back = find_files(), []
    for row in ROWS:
        more = {area: n for area, n in measure(row, files).items() if n > row.allowed.get(area, 0)}
        if more:
            places = [
                f"{place_of(path)} ({row.count(path)})" for path in files if area_of(path) in more and row.count(path)
            ]
            told = {area: row.allowed.get(area, 0) for area in more}
            back.append(
                f"not {'; '.join(row.old)} but {row.now}: {told} allowed, {more} found, in {', '.join(places[:30])}"
            )
    assert not back, "\n".join(back)


def test_an_old_word_is_found_in_code_sentences_and_names_of_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "moving" / "vm.py"
    path.parent.mkdir()
    path.write_text(
        '"""What people wished\n    is to be done."""\nclass WorkloadWish:\n    def tell_vm(self, vm): ...\n'
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    text = (
        "wish wished | spec | word | pages 1\nis to be | – | phrase |\nvm | – | parameter in moving |\n"
        "tell | – | name not in moving |\nmoving | – | file | nowhere"
    )
    wish, phrase, parameter, name, file = read_rows(text)
    assert wish.allowed == {"pages": 1} and wish.count(path) == 2 and phrase.count(path) == 1
    assert parameter.count(path) == 1 and parameter.is_in("moving") and not parameter.is_in("agent")
    assert name.count(path) == 1 and not name.is_in("moving") and name.is_in("agent") and file.count(path) == 1


def test_an_odd_word_is_found_where_people_read_it_and_nowhere_else(tmp_path: Path) -> None:
    code, page = tmp_path / "port.py", tmp_path / "port.md"
    code.write_text(
        '"""It is no port."""\nraise Odd(f"{port} is no port", "there is no port, it is no longer made anew")\n'
    )
    page.write_text("It isn't made\nanew at once ([told](is-no-port.md)); these\nare no ports.")
    no, anew, once, told = read_rows(
        "is no; are no | – | message |\nanew | – | message |\nat once | – | message |\ntold | – | message |"
    )
    assert [row.count(code) for row in (no, anew, once, told)] == [1, 1, 0, 0]
    assert [row.count(page) for row in (no, anew, once, told)] == [1, 1, 1, 1]


BEFORE_A_NOUN = frozenset(
    "of by what with from in to for as at on whose which who that where after before within beside between against through over"
    " under about into without among behind per since until while".split()
)


def test_a_docstring_begins_with_what_it_is_of() -> None:
    """With the noun or the verb, and not with a preposition or a relative pronoun."""
    wrong = []
    for path in FILES:
        for node in nodes_of(path, ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef):
            words = (ast.get_docstring(node) or "").split()
            if words and words[0].lower().strip(",.:;`") in BEFORE_A_NOUN:
                wrong.append(f"{path.relative_to(ROOT)}:{node.body[0].lineno} {' '.join(words[:8])}")
    assert wrong == []


def lower(text: str) -> str:
    """The table with the counts of now where they are lower, and where a row has none yet."""
    files, lines = find_files(), []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            (row,), told = read_rows(line), line.rpartition(" |")[0]
            found = measure(row, files)
            is_new = line.endswith("|")
            kept = {area: n if is_new else min(n, row.allowed.get(area, 0)) for area, n in found.items()}
            line = f"{told} | {', '.join(f'{area} {n}' for area, n in kept.items() if n) or NOWHERE}"
        lines.append(line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(lower(TABLE.read_text()))
