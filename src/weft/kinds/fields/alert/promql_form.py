"""Whether a PromQL expression is whole: each operator has both its sides, and no two terms stand side by side. Pure.

Metrics and functions it doesn't know, nor types: the database says those. It takes what the database takes beside PromQL, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from weft.kinds.fields.alert.promql import STRING, check_balanced
from weft.objects.errors import InvalidInput

_TOKEN = re.compile(
    r"""(?P<string>"")|(?P<number>(?:0[xX][0-9a-fA-F]+|\d[\w.]*(?:(?<=[eE])[+-]\d+)?|\.\d[\w.]*))|(?P<word>[^\W\d][\w:.]*|:[\w:.]+)
    |(?P<operator>==|!=|<=|>=|=~|!~|[-+*/%^<>@])|(?P<bracket>[()])|(?P<braces>\{[^{}]*\})|(?P<range>\[[^\[\]]*\])|(?P<comma>,)
    |(?P<space>\s+)|(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_BINARY = frozenset("and or unless atan2 if ifnot default offset limit".split())
_AFTER_OPERATOR = frozenset("bool on ignoring group_left group_right".split())  # before its right side
_GROUPING = frozenset("by without".split())
_RANGE = re.compile(r"\[\s*[\w.]+\s*(?::\s*[\w.]*\s*)?\]")
_LABELS = re.compile(r"""\{\s*(?:(?:[\w:.]+|"")\s*(?:(?:=~|!~|!=|=)\s*"")?\s*(?:,|\bor\b)?\s*)*\}""")


def check_form(text: str, field: str) -> None:
    """Raises InvalidInput unless ``text`` is one whole expression."""
    check_balanced(text, field)
    tokens = list(_read(STRING.sub(lambda found: " " if found[0].startswith("#") else '""', text)))
    before, wants, calls = (
        "",
        True,
        list[bool](),
    )  # ``wants``: a term must come next; of each open bracket, whether it is a call's
    labels = 0  # depth of brackets with names of labels, which are skipped
    for at, (sort, word) in enumerate(tokens):
        follows = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if labels:
            labels += (word == "(") - (word == ")")
        elif sort == "word" and word.lower() in _AFTER_OPERATOR and wants and before:
            labels, wants = 0, True
            if follows == "(" and word.lower() != "bool":
                tokens[at + 1] = ("labels", "(")
        elif sort == "word" and word.lower() in _GROUPING and before and not wants:
            if follows == "(":
                tokens[at + 1] = ("labels", "(")
        elif sort == "labels":
            labels = 1
        elif word == "(":
            calls.append(not wants)
            wants = True
        elif word == ")":
            if wants and before != "," and not (before == "(" and calls[-1]):
                raise _lacks(field, before)
            calls.pop()
            wants = False
        elif sort == "comma":
            if wants or not calls or not calls[-1]:
                raise InvalidInput(f"{field}: a comma stands where none may be", field=field, hint="remove it")
            wants = True
        elif sort == "operator" or (sort == "word" and word.lower() in _BINARY and not wants):
            if wants and word not in "+-":
                raise InvalidInput(
                    f"{field}: nothing stands before {word!r}", field=field, hint="write an expression on its left, too"
                )
            if word in ("=~", "!~"):
                raise InvalidInput(
                    f"{field}: {word!r} compares labels only",
                    field=field,
                    hint='write it in braces, like {name=~"web.*"}',
                )
            wants = True
        elif sort == "range":
            if wants or not _RANGE.fullmatch(word):
                raise InvalidInput(
                    f"{field}: {word[:40]!r} is not a span of time of a metric", field=field, hint="write METRIC[5m]"
                )
        elif sort == "braces":
            if not _LABELS.fullmatch(word):
                raise InvalidInput(
                    f"{field}: {word[:40]!r} doesn't choose labels", field=field, hint='write METRIC{name="web"}'
                )
            wants = False
        elif sort == "other":
            hint = "write == to compare" if word == "=" else "remove it"
            raise InvalidInput(f"{field}: {word!r} is not part of PromQL", field=field, hint=hint)
        elif word != "keep_metric_names" or wants:
            if not wants:
                shown = [one if one != '""' else "a string" for one in (before, word)]
                raise InvalidInput(
                    f"{field}: {shown[1][:40]} follows {shown[0][:40]} without an operator",
                    field=field,
                    hint=f"write an operator between them, like {shown[0][:40]} > 0.9",
                )
            wants = False
        before = word
    if wants:
        raise _lacks(field, before)


def _lacks(field: str, before: str) -> InvalidInput:
    if before == "(":
        return InvalidInput(
            f"{field}: nothing stands in the parentheses", field=field, hint="write an expression there"
        )
    return InvalidInput(
        f"{field}: nothing stands after {before!r}",
        field=field,
        hint=f"write an expression on its right, like {before} 0.9",
    )


def _read(text: str) -> Iterator[tuple[str, str]]:
    for found in _TOKEN.finditer(text):
        if found.lastgroup != "space":
            yield str(found.lastgroup), found[0]
