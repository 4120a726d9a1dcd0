"""The forms of ``-o``: how objects are printed, and for jsonpath and template, which parts. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.objects.errors import InvalidInput
from weft.objects.schema import suggest

WITH_EXPRESSION = ("jsonpath", "template")
OUTPUTS = ("table", "wide", "json", "yaml", "csv", "name", "markdown", *WITH_EXPRESSION)
DOCUMENTS = ("json", "yaml", *WITH_EXPRESSION)  # whole objects; the others but name are rows
_NO_HEADER = ",noheader"
_MEANINGS = {
    "table": "rows for people; a narrow terminal shows fewer columns",
    "wide": "the same with all columns",
    "json": 'whole objects, one or {"items": […]}; times are RFC 3339; with -w one object a line',
    "yaml": "the same as YAML; weft apply -f - reads it",
    "csv": "rows for programs; -o csv,noheader without titles",
    "name": "KIND/NAME, one a line",
    "markdown": "rows as a Markdown table",
    "jsonpath=…": "kubectl's path expressions: -o jsonpath='{.items[*].status.node}'",
    "template=…": "one line for each object: -o template='{name} is on {status.node}'",
}
_BESIDE = {
    "-c name,phase": "only these columns, or fields like spec.image",
    "--sort memory": "sort by that column or field; --sort -memory puts the largest first",
    "--no-header": "rows without titles",
    "--json a,b.c": "JSON of these fields only",
    "--jq EXPR": "filter the JSON; the program jq need not be installed",
    "WEFT_OUTPUT": "the form without -o",
}


class Form(msgspec.Struct, frozen=True):
    """``name`` is one of OUTPUTS, or a word of the command's own; ``expression`` is that of jsonpath and template; rows of one
    without ``header`` have no titles."""

    name: str = "table"
    expression: str = ""
    header: bool = True

    def without_header(self) -> Form:
        return msgspec.structs.replace(self, header=False)


def read_form(text: str, more: Sequence[str] = (), field: str = "-o") -> Form:
    """The form that ``text`` names, ``more`` being the command's own. Raises InvalidInput naming ``field``."""
    name, _, expression = text.partition("=")
    if name in WITH_EXPRESSION:
        if not expression:
            like = "jsonpath='{.items[*].name}'" if name == "jsonpath" else "template='{name} is on {status.node}'"
            raise InvalidInput(f"{field} {name}: the expression is missing", field=field, hint=f"write -o {like}")
        return Form(name, expression)
    plain = text.removesuffix(_NO_HEADER)
    known = [word for word in (*OUTPUTS, *more) if word not in WITH_EXPRESSION]
    if plain not in known:
        meant = suggest(plain, known)
        raise InvalidInput(
            f"{text[:40]!r} is not one of {', '.join(known)}, {', '.join(f'{word}=…' for word in WITH_EXPRESSION)}",
            field=field,
            hint=f"did you mean {meant}?" if meant else None,
        )
    return Form(plain, header=plain == text)


def describe_forms() -> str:
    """The forms, as ``weft help output`` shows them."""
    width = max(map(len, (*_MEANINGS, *_BESIDE))) + 2
    forms = [f"  {word:<{width}}{meaning}" for word, meaning in _MEANINGS.items()]
    return "\n".join(
        ["-o FORM:", *forms, "", "With it:", *(f"  {w:<{width}}{meaning}" for w, meaning in _BESIDE.items())]
    )
