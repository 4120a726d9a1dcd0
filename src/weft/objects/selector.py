"""Label and field selectors: ``tier=db,env!=dev,zone in (a,b),!legacy``. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weft.objects.errors import InvalidInput

Predicate = Callable[[Mapping[str, str]], bool]
Read = Callable[[str, Sequence[str]], tuple[str, list[str]]]
_SET = re.compile(r"\s*([^\s=!,()]+)\s+(in|not_in|notin)\s*\(([^)]*)\)\s*")
_EQ = re.compile(r"\s*([^\s=!,()]+)\s*(==|=|!=)\s*([^\s,()=!]*)\s*")
_HAS = re.compile(r"\s*(!?)\s*([^\s=!,()]+)\s*")


def _as_written(key: str, values: Sequence[str]) -> tuple[str, list[str]]:
    return key, list(values)


def parse_selector(text: str, field: str = "selector", read: Read = _as_written) -> Predicate:
    """A predicate over a mapping; an empty text matches all. ``read`` converts a term's key and values, or raises for values that
    the key can't have. Raises InvalidInput with the part that can't be read."""
    tests: list[Predicate] = []
    position = 0
    while position < len(text):
        for pattern, build in ((_SET, _in_set), (_EQ, _equals), (_HAS, _has)):
            match = pattern.match(text, position)
            if match and (match.end() == len(text) or text[match.end()] == ","):
                tests.append(build(match, read))
                position = match.end() + 1
                break
        else:
            raise InvalidInput(
                f"{field}: can't read {text[position:][:40]!r}",
                field=field,
                hint="write key=value, key!=value, key in (a,b), key or !key, separated by commas",
            )
    return lambda labels: all(test(labels) for test in tests)


def _in_set(match: re.Match[str], read: Read) -> Predicate:
    key, values = read(match[1], [value.strip() for value in match[3].split(",")])
    inside = match[2] == "in"
    return lambda labels: (labels.get(key) in values) is inside


def _equals(match: re.Match[str], read: Read) -> Predicate:
    key, (value,) = read(match[1], [match[3]])
    same = match[2] != "!="
    return lambda labels: (labels.get(key) == value) is same


def _has(match: re.Match[str], read: Read) -> Predicate:
    key, _ = read(match[2], [])
    wanted = not match[1]
    return lambda labels: (key in labels) is wanted


class Fields(Mapping[str, str]):
    """An object's fields as a selector sees them: dotted paths, also short (``phase`` is ``status.phase``)."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree

    def _find(self, path: str) -> Any:
        for root in ((), ("status",), ("spec",)):
            node: Any = self._tree
            for part in (*root, *path.split(".")):
                node = node.get(part) if isinstance(node, Mapping) else None
                if node is None:
                    break
            if node is not None:
                return node
        return None

    def __getitem__(self, path: str) -> str:
        found = self._find(path)
        if found is None:
            raise KeyError(path)
        if isinstance(found, bool):
            return "true" if found else "false"
        return str(found)

    def __iter__(self) -> Any:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)
