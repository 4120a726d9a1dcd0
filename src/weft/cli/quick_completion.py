"""Answers TAB from two files that the whole completion writes: the grammar, and names that a server listed some seconds ago.
Shells run this file by itself (`python -I -S`): it imports only what starts at once, and nothing of weft. For anything that it
isn't sure of, it becomes the whole completion."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Grammar = dict[str, Any]
    Item = tuple[str, str, str]  # type, value, help
    Ask = Callable[[str], list[str]]

CACHE_SECONDS = 10.0
_DECIDING = ("HOME", "WEFT_CONTEXT", "WEFT_SERVER", "WEFT_TOKEN", "WEFT_PROJECT", "WEFT_CA")
_ELSEWHERE = {"--context", "--project", "-p", "--all-projects", "-A"}  # names from another place than this one
_SPECIAL = frozenset("\"'\\=`$")


class NotQuick(Exception):
    """The whole completion must answer."""


def find_folder(environ: Mapping[str, str]) -> str:
    """Find the folder where both kinds of files lie."""
    cache = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or "/root", ".cache")
    return os.path.join(cache, "weft", "completion")


def find_grammar(environ: Mapping[str, str]) -> str:
    """The file of the grammar: a line of what it is of, then one for each row of words."""
    return os.path.join(find_folder(environ), "grammar")


def find_names(environ: Mapping[str, str], context: str, project: str, kind: str) -> str:
    """The file of names of ``kind``: one for each set of settings that choose the server and project."""
    parts = [environ.get(name, "") for name in _DECIDING] + [os.getcwd(), context, project]
    return os.path.join(
        find_folder(environ), hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16], kind
    )


def read_names(path: str, now: float) -> list[str] | None:
    """None if they aren't there, or are too old."""
    try:
        with open(path) as file:
            age = now - os.fstat(file.fileno()).st_mtime
            return file.read().split() if 0 <= age < CACHE_SECONDS else None
    except (OSError, ValueError):
        return None


def stamp_source(package: str) -> str:
    """A stamp of a grammar's source: this weft's files as they are now."""
    newest = 0
    for folder in ("cli", "cli/command", "cli/function", "cli/verbs", "kinds", "kinds/fields", "kinds/parts"):
        with os.scandir(os.path.join(package, folder)) as entries:
            newest = max(newest, *(entry.stat().st_mtime_ns for entry in entries if entry.name.endswith(".py")))
    return f"{package} {newest}"


class Nodes:
    """The nodes that follow each row of words, parsed on use, because all of it is long."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = dict(line.split("\t", 1) for line in lines)

    def __contains__(self, path: str) -> bool:
        return path in self._lines

    def __getitem__(self, path: str) -> Any:
        return json.loads(self._lines[path])


def read_grammar(path: str, stamp: str) -> Grammar:
    """Raises NotQuick for that of another weft, OSError and ValueError where there is none."""
    with open(path) as file:
        head = json.loads(file.readline())
        if head["stamp"] != stamp:
            raise NotQuick
        return {**head, "nodes": Nodes(file.read().splitlines())}


def complete(grammar: Grammar, words: list[str], incomplete: str, names: Ask) -> list[Item]:
    """Complete ``incomplete`` after ``words``: what may stand in its place. ``names(kind)`` are the live ones; it raises NotQuick
    where they aren't known. Raises NotQuick."""
    nodes = grammar["nodes"]
    path, node, wanted = "", nodes[""], None
    values: list[str] = []
    used: set[str] = set()
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--" or (word.startswith("-") and "=" in word):
            raise NotQuick
        if word.startswith("-") and word != "-":
            option = node["options"].get(word)
            if option is None:
                raise NotQuick
            if option["value"] is not None and not left:
                wanted = option["value"]
                break
            used.update(option["all"])
            if option["value"] is not None:
                left.pop(0)
        elif "words" in node:
            path = f"{path} {word if word in node['words'] else grammar['synonyms'].get(word, word)}".strip()
            if path not in nodes:
                raise NotQuick
            node = nodes[path]
        else:
            values.append(word)
    if incomplete.startswith("-"):
        of_kind = not _find_argument(node, 0).get("target", "-") and values  # it may have options of its own
        if wanted is not None or "=" in incomplete or of_kind:
            raise NotQuick
        return _list_options(node, used, incomplete)
    if wanted is None and "words" in node:
        return [("plain", word, help_) for word, help_ in node["words"].items() if word.startswith(incomplete)]
    if used & _ELSEWHERE:
        names = _know_nothing
    return list_values(
        grammar["kinds"], _find_argument(node, len(values)) if wanted is None else wanted, values, incomplete, names
    )


def _know_nothing(kind: str) -> list[str]:
    raise NotQuick


def _list_options(node: Any, used: set[str], incomplete: str) -> list[Item]:
    return [
        ("plain", name, option["help"])
        for name, option in node["options"].items()
        if name.startswith(incomplete) and not option["hidden"] and (option["many"] or name not in used)
    ]


def _find_argument(node: Any, given: int) -> Any:
    for argument in node["arguments"]:
        if argument["many"] or given == 0:
            return argument["value"]
        given -= 1
    return {"words": []}


def list_values(kinds: dict[str, str], wanted: Any, values: list[str], incomplete: str, names: Ask) -> list[Item]:
    """List what begins with ``incomplete``, of the values that ``wanted`` describes: ``words``, pairs of a word and its help, or
    ``names`` of a kind beside them, or a ``target`` (a kind's, or one named by KIND/NAME, or KIND and NAME after each other:
    ``values`` came before; ``able`` are its kinds), or a ``type`` that the shell itself knows. ``several``: commas stand between;
    ``at``: the kind whose names follow an @. ``kinds`` are all words for kinds. Raises NotQuick for anything else, and what
    ``names`` raises."""
    if "type" in wanted:
        return [(wanted["type"], incomplete, "")]
    if "target" in wanted:
        return _list_targets(kinds, wanted, values, incomplete, names)
    before, sign, start = incomplete.rpartition(",") if wanted.get("several") else ("", "", incomplete)
    if "names" in wanted:
        found = [*wanted.get("words", ()), *([name, ""] for name in names(wanted["names"]))]
    elif "at" in wanted and start.startswith("@"):
        found = [["@" + name, ""] for name in names(wanted["at"])]
    elif "words" in wanted:
        found = wanted["words"]
        start = start.replace("_", "-") if "at" in wanted else start
    else:
        raise NotQuick
    return [("plain", before + sign + value, help_) for value, help_ in found if value.startswith(start)]


def _list_targets(kinds: dict[str, str], wanted: Any, values: list[str], incomplete: str, names: Ask) -> list[Item]:
    prefix, kind, start = "", wanted["target"], incomplete
    if not kind and "/" in incomplete:
        word, _, start = incomplete.partition("/")
        prefix, kind = f"{word}/", kinds.get(word)
    elif not kind and values and "/" not in values[0]:
        kind = kinds.get(values[0])
    elif not kind:
        found = [*wanted["able"], *(names(wanted["able"][0]) if len(wanted["able"]) == 1 else [])]
        return [("plain", one, "") for one in found if one.startswith(incomplete)]
    if kind is None:
        raise NotQuick
    return [("plain", prefix + name, "") for name in names(kind) if name.startswith(start)]


def render(shell: str, items: list[Item]) -> str:
    """Render the items in the form that the scripts of the three shells read."""
    if shell == "bash":
        return "".join(f"{type_},{value}\n" for type_, value, _ in items)
    if shell == "fish":
        lines = []
        for type_, value, help_ in items:
            help_ = help_.replace("\n", "\\n").replace("\t", " ")
            lines.append(f"{type_},{value}\t{help_}\n" if help_ else f"{type_},{value}\n")
        return "".join(lines)
    return "".join(
        f"{type_}\n{value.replace(':', chr(92) + ':') if help_ else value}\n{help_ or '_'}\n"
        for type_, value, help_ in items
    )


def _read_line(environ: Mapping[str, str], shell: str) -> tuple[list[str], str]:
    line = environ["COMP_WORDS"]
    if _SPECIAL & set(line):  # quoting is for the whole one
        raise NotQuick
    words = line.split()
    if shell == "fish":
        incomplete = environ["COMP_CWORD"]
        words = words[1:]
        if incomplete and words and words[-1] == incomplete:
            words.pop()
        return words, incomplete
    at = int(environ["COMP_CWORD"])
    return words[1:at], words[at] if at < len(words) else ""


def _read_fresh(kind: str) -> list[str]:
    found = read_names(find_names(os.environ, "", "", kind), time.time())
    if found is None:
        raise NotQuick
    return found


def main() -> None:
    """Answer on standard output, or become the program that the first argument names."""
    environ = os.environ
    shell = environ.get("_WEFT_COMPLETE", "").partition("_")[0]
    try:
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        grammar = read_grammar(find_grammar(environ), stamp_source(package))
        words, incomplete = _read_line(environ, shell)
        items = complete(grammar, words, incomplete, _read_fresh)
    except (NotQuick, OSError, ValueError, KeyError, TypeError):  # damaged files: as if there were none
        os.execvp(sys.argv[1], [sys.argv[1]])
    sys.stdout.write(render(shell, items))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
