"""YAML, read with the place of every key; several documents by ``---``. Duplicate keys are refused. Pure."""

from __future__ import annotations

import re
from typing import Any

import yaml

from weft.cli.manifest.document import Document, Path, Position, place_of, unreadable

_MERGE = "tag:yaml.org,2002:merge"
MAX_PARTS = 500_000  # fields and items of a document with its aliases written out: nine lines can stand for billions
MAX_BRACKETS = 200  # in each other


# Decimal numbers alone. What YAML 1.1 takes for numbers, too, means something else to people: 1:30 (90), 010 (8), 0x1f, 1_000.
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
}


class _Loader(yaml.SafeLoader):
    """SafeLoader that leaves dates, times and odd numbers as the text they were written as: a field that takes such text reads
    it as the command line does, and any other one refuses it."""

    yaml_implicit_resolvers = {  # noqa: RUF012 — the base class has it so
        key: [(tag, _NUMBERS.get(tag, pattern)) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Raises MarkedYAMLError for one bracket too many in others: the time for each grows with their number."""
        if self.flow_level >= MAX_BRACKETS:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)


def read_yaml(text: str, file: str) -> list[Document]:
    """The documents in ``text``, empty ones left out. Raises InvalidInput with file, line and column."""
    documents: list[Document] = []
    begin: Position = (1, 1)  # of the document that is being read
    try:
        loader = _Loader(text)
        try:
            while loader.check_node():
                node = loader.get_node()
                if node is None:
                    break
                begin = _place(node.start_mark)
                places: dict[Path, Position] = {(): begin}
                _read_places(node, (), places, file, set())
                value = loader.construct_document(node)
                if value is not None:
                    documents.append(Document(value, file, places))
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as problem:
        raise unreadable(file, place_of(text, problem.position), f"YAML: {problem.reason}") from None
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        why = problem.problem or problem.context or "can't be read"
        raise unreadable(file, _place(mark) if mark else None, f"YAML: {why}", _hint(why)) from None
    except RecursionError:
        raise unreadable(file, begin, "YAML: nested too deeply") from None
    except (ValueError, TypeError, AttributeError, LookupError) as problem:  # what its constructors make of odd scalars
        raise unreadable(
            file, begin, f"YAML: {str(problem).splitlines()[0] if str(problem) else 'invalid value'}"
        ) from None
    return documents


def _place(mark: Any) -> Position:
    return mark.line + 1, mark.column + 1


def _hint(why: str) -> str:
    if "\\t" in why:
        return "indent with spaces, not with tabs"
    if "mapping values are not allowed" in why:
        return "check the indentation, or put the text in quotes"
    return "look at brackets, quotes and indentation there and in the lines before"


def _read_places(node: yaml.Node, path: Path, places: dict[Path, Position], file: str, seen: set[int]) -> None:
    if id(node) in seen:  # an alias of something that is being read: YAML allows a loop, a manifest doesn't
        raise unreadable(file, _place(node.start_mark), "YAML: a node that contains itself")
    if len(places) > MAX_PARTS:
        raise unreadable(file, _place(node.start_mark), f"YAML: more than {MAX_PARTS} fields, aliases written out")
    inside = seen | {id(node)}
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise unreadable(file, _place(key.start_mark), "YAML: a key must be plain text")
            if key.value in names:
                raise unreadable(file, _place(key.start_mark), f"{key.value!r} is given twice", "keep one of them")
            names.add(key.value)
            places[*path, key.value] = _place(key.start_mark)
            _read_places(value, (*path, key.value), places, file, inside)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[*path, index] = _place(item.start_mark)
            _read_places(item, (*path, index), places, file, inside)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _write_text)


def write_yaml(value: Any) -> str:
    """``value`` as YAML that people like to read: keys in their order, scripts as blocks."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
