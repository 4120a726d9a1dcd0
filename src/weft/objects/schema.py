"""Strict reading of people's input: unknown fields are refused at any depth, quantities become numbers, and every error has
the path of its field. The msgspec structs are the only description of the fields. Pure.

Fields are annotated with ``field(...)``: the purpose, how people write it, and what a change costs
(``live | plug | restart | replace | never``, see ``objects/spec_change.py``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import inspect as mi

from weft.objects.errors import InvalidInput, UnknownField, WeftError, begin_small
from weft.objects.identity import check_name, check_shared_name
from weft.objects.quantity import (
    format_bytes,
    format_limit,
    parse_amount,
    parse_bytes,
    parse_cpu,
    parse_duration,
    parse_moment,
    parse_period,
    parse_ratio,
    parse_share,
)

T = TypeVar("T")
_BOUND = re.compile(r"Expected `(?:float|int)(?: \| null)?` ([<>]=?) ([-+.e\d]+)")
_COMPARED = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}
_WRITERS: Mapping[str, Callable[[float], str]] = {
    "duration": format_limit,
    "period": format_limit,
    "bytes": format_bytes,
}
MOST_PROBLEMS = 20  # in the answer about one object
LONGEST_PATH = 200
LONGEST_WORD = 64  # longer ones get no suggestion
ChangeMode = Literal["live", "plug", "restart", "replace", "never"]
Quantity = Literal["bytes", "cpu", "duration", "period", "amount", "ratio", "share", "moment", ""]
_UNCOUNTED = ("text", "true", "auto", "fields", "any", "cores")  # types without an article
_TYPE_WORDS = {  # by msgspec's names
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "null": "nothing",
    "object": "a map",
    "str": "text",
}
_QUANTITY_WORDS = {
    "bytes": "size",
    "cpu": "cores",
    "duration": "duration",
    "period": "duration",
    "amount": "count or size",
    "ratio": "number",
    "share": "share",
    "moment": "time",
}
_PARSERS = {
    "bytes": parse_bytes,
    "cpu": parse_cpu,
    "duration": parse_duration,
    "period": parse_period,
    "amount": parse_amount,
    "ratio": parse_ratio,
    "share": parse_share,
    "moment": parse_moment,
}


def field(
    description: str,
    *,
    change: ChangeMode = "live",
    quantity: Quantity = "",
    name: bool = False,
    shared: bool = False,
    ge: float | None = None,
    le: float | None = None,
    max_length: int | None = None,
    shown: str = "",
) -> msgspec.Meta:
    """The Meta of a spec field: its purpose, what a change costs, and how people write it: a ``name``, if ``shared`` also
    PROJECT/NAME; ``shown`` is a word of its own for its type."""
    limits: dict[str, Any] = {"ge": ge, "le": le, "max_length": max_length}
    return msgspec.Meta(
        description=description,
        extra={"change": change, "quantity": quantity, "name": name, "shared": shared, "shown": shown},
        **{key: value for key, value in limits.items() if value is not None},
    )


def words(*known: str) -> msgspec.Meta:
    """The Meta of a text that is one of ``known`` words; read as any text, since a newer weft may have more words."""
    return msgspec.Meta(extra={"words": known})


class PathValues(msgspec.Struct, frozen=True):
    """The values at a path of an object: one of ``words`` (none: any), or a ``quantity``, which is ``whole`` or may have a
    fraction."""

    words: tuple[str, ...] = ()
    quantity: Quantity = ""
    whole: bool = False

    def read(self, text: str, path: str) -> str:
        """``text`` as the object has it: a word in its case, a quantity as a number. Raises InvalidInput."""
        if not text:
            return text  # of a field that isn't set
        if self.quantity:
            number = _PARSERS[self.quantity](text, path)
            return str(int(number) if self.whole else number)
        by_letters = {word.lower(): word for word in self.words}
        if not self.words or text.lower() in by_letters:
            return by_letters.get(text.lower(), text)
        meant = suggest(text.lower(), list(by_letters))
        raise InvalidInput(
            f"{path} can't be {text[:60]!r}: it is one of {', '.join(self.words)}",
            field=path,
            hint=f"did you mean {path}={by_letters[meant]}?" if meant else None,
        )


class FieldDoc(msgspec.Struct, frozen=True):
    path: str
    type: str
    default: Any
    required: bool
    change: ChangeMode
    description: str


@functools.cache
def _info(type_: Any) -> mi.Type:
    return mi.type_info(type_)


def _unwrap(info: mi.Type) -> tuple[mi.Type, dict[str, Any], str]:
    """The type below Metadata and Optional, with the extra and description found on the way."""
    extra: dict[str, Any] = {}
    description = ""
    while True:
        if isinstance(info, mi.Metadata):
            extra = {**(info.extra or {}), **extra}
            description = description or (info.extra_json_schema or {}).get("description", "")
            info = info.type
        elif isinstance(info, mi.UnionType):
            inner = [t for t in info.types if not isinstance(t, mi.NoneType)]
            if len(inner) != 1:
                return info, extra, description
            info = inner[0]
        else:
            return info, extra, description


def _nullable(info: mi.Type) -> bool:
    while isinstance(info, mi.Metadata):
        info = info.type
    return isinstance(info, mi.NoneType) or (
        isinstance(info, mi.UnionType) and any(isinstance(t, mi.NoneType) for t in info.types)
    )


def suggest(word: str, known: list[str], alike: float = 0.6) -> str | None:
    """The known word that people most likely meant by ``word``; ``alike`` (0 to 1) is how much it must resemble it at least."""
    if len(word) > LONGEST_WORD:
        return None
    import difflib  # noqa: PLC0415 - an agent reads no words of people after its start

    close = difflib.get_close_matches(word, known, n=1, cutoff=alike)
    return close[0] if close else None


class _Shape(msgspec.Struct, frozen=True):
    """How a value is read beyond msgspec's own checks. Made once for each type: all input goes through it."""

    nullable: bool
    parse: Callable[[Any, str], Any] | None = None
    is_name: bool = False
    may_be_empty: bool = False  # a name whose field is "" without one
    may_be_shared: bool = False
    words: tuple[Any, ...] | None = None
    struct: type | None = None
    item: _Shape | None = None  # of a list
    value: _Shape | None = None  # of a map


class _Fields(msgspec.Struct, frozen=True):
    """The fields of a struct: a name's shape is None where msgspec alone reads it. ``required``: with their descriptions."""

    shapes: dict[str, _Shape | None]
    required: dict[str, str]


def _shape_of(info: mi.Type) -> _Shape | None:
    """None if msgspec alone reads it: it is no struct, word or quantity, nor a list or map of them."""
    inner, extra, _ = _unwrap(info)
    shape = _Shape(
        _nullable(info),
        parse=_PARSERS.get(extra.get("quantity", "")),
        is_name=bool(extra.get("name")),
        may_be_shared=bool(extra.get("shared")),
        words=tuple(inner.values) if isinstance(inner, mi.LiteralType) else None,
        struct=inner.cls if isinstance(inner, mi.StructType) else None,
        item=_shape_of(inner.item_type) if isinstance(inner, (mi.ListType, mi.VarTupleType)) else None,
        value=_shape_of(inner.value_type) if isinstance(inner, mi.DictType) else None,
    )
    return None if shape == _Shape(shape.nullable) else shape


@functools.cache
def _shape(type_: Any) -> _Shape | None:
    return _shape_of(_info(type_))


@functools.cache
def _fields(cls: type) -> _Fields:
    info = _info(cls)
    fields = info.fields if isinstance(info, mi.StructType) else ()
    return _Fields(
        {f.encode_name: _field_shape(f) for f in fields},
        {f.encode_name: _unwrap(f.type)[2] for f in fields if f.required},
    )


def _field_shape(field: mi.Field) -> _Shape | None:
    shape = _shape_of(field.type)
    if shape is not None and shape.is_name and field.default == "":
        return msgspec.structs.replace(shape, may_be_empty=True)
    return shape


def _normalise(raw: Any, shape: _Shape, path: str, problems: list[WeftError]) -> Any:
    if len(problems) >= MOST_PROBLEMS or (raw is None and shape.nullable):
        return raw
    try:
        if shape.parse is not None:
            return shape.parse(raw, path)
        if shape.is_name and isinstance(raw, str):
            if raw == "" and shape.may_be_empty:
                return raw
            return check_shared_name(raw, path) if shape.may_be_shared else check_name(raw, path)
    except InvalidInput as problem:
        problems.append(problem)
        return raw
    if shape.words is not None and raw not in shape.words:
        problems.append(_refuse_word(raw, [str(value) for value in shape.words], path))
    elif shape.struct is not None:
        return _normalise_struct(raw, shape.struct, path, problems)
    elif shape.item is not None and isinstance(raw, list):
        return [_normalise(item, shape.item, f"{path}[{i}]", problems) for i, item in enumerate(raw)]
    elif shape.value is not None and isinstance(raw, dict):
        return {k: _normalise(v, shape.value, f"{path}.{k}", problems) for k, v in raw.items()}
    return raw


def _refuse_word(raw: Any, words: list[str], path: str) -> InvalidInput:
    """The error for a value that is none of its field's words."""
    words = [word for word in words if word]  # "" is what a field is without one
    if not isinstance(raw, str):
        return InvalidInput(f"{path}: expected one of {', '.join(words)}, got {_kind_of(raw)}", field=path)
    if len(words) == 1:
        return InvalidInput(f"{path} takes only {words[0]}", field=path, hint=f"set it to {words[0]}, or leave it out")
    meant = suggest(raw.lower().replace("_", "-"), words)
    return InvalidInput(
        f"{path}: {raw[:60]!r} is none of {', '.join(words)}",
        field=path,
        hint=f"did you mean {meant}?" if meant else None,
    )


def _normalise_struct(raw: Any, cls: type, path: str, problems: list[WeftError]) -> Any:
    if not isinstance(raw, dict):
        problems.append(InvalidInput(f"{path} must be a set of fields, not {_kind_of(raw)}", field=path))
        return raw
    fields = _fields(cls)
    shapes = fields.shapes
    out = {}
    listed = False  # the fields that there are, once for all keys that aren't among them
    for key, value in raw.items():
        if len(problems) >= MOST_PROBLEMS:
            return raw
        if key not in shapes:
            problems.append(_refuse_field(str(key), shapes, path, listed))
            listed = True
        elif (shape := shapes[key]) is not None:
            out[key] = _normalise(value, shape, f"{path}.{key}" if path else key, problems)
        else:
            out[key] = value
    for name, meaning in fields.required.items():
        if name not in raw:
            at = f"{path}.{name}" if path else name
            problems.append(InvalidInput(f"{at} is missing", field=at, hint=meaning or None))
    return out


def _refuse_field(name: str, known: Iterable[str], path: str, briefly: bool = False) -> UnknownField:
    at = _clip(f"{path}.{name}" if path else name)
    if meant := suggest(name, list(known)):
        hint = f"did you mean {path + '.' if path else ''}{meant}?"
    else:
        hint = "remove it" if briefly else "fields: " + ", ".join(known)
    return UnknownField(f"{at} is not a field", field=at, hint=hint)


def _clip(path: str) -> str:
    return path if len(path) <= LONGEST_PATH else f"{path[:LONGEST_PATH]}…"


def _kind_of(raw: Any) -> str:
    return {
        dict: "a set of fields",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "nothing",
    }.get(type(raw), type(raw).__name__)


def find_problems(raw: Any, type_: Any, path: str = "spec") -> tuple[Any, list[WeftError]]:
    """``raw`` with quantities as numbers, and its problems in the order found: at most MOST_PROBLEMS, since each costs time, and
    nobody reads thousands."""
    problems: list[WeftError] = []
    shape = _shape(type_)
    return (raw if shape is None else _normalise(raw, shape, path, problems)), problems


def read_strict(raw: Any, type_: type[T], path: str = "spec") -> T:
    """``raw`` (plain JSON-like data) as a ``type_``, defaults filled in. Raises the first problem, the others in
    ``details["problems"]``."""
    value, problems = find_problems(raw, type_, path)
    if not problems:
        try:
            return msgspec.convert(value, type_)
        except msgspec.ValidationError as error:
            text = str(error)
            what, _, where = text.partition(" - at `$")
            at = (path + where.rstrip("`")).removeprefix(".") if where else path
            steps = [step for step in re.sub(r"\[[^]]*\]", "", where.rstrip("`")).split(".") if step]
            fact = _name_bound(what, type_, steps) or _in_words(what)
            problems = [InvalidInput(f"{at}: {begin_small(fact)}", field=at, hint=_hint_at(type_, path, at))]
    first = problems[0]
    if len(problems) > 1:
        first.details["problems"] = [p.to_dict() for p in problems]
    raise first


def unit(name: Quantity) -> msgspec.Meta:
    """Note on a number that programs write, like seconds: an error names its bounds as people write them, like 25h."""
    return msgspec.Meta(extra={"unit": name})


def _name_bound(problem: str, type_: Any, steps: Sequence[str]) -> str | None:
    """``must be at most 25h`` for a number beyond its bounds that is a duration or a size; None for anything else."""
    found = _BOUND.fullmatch(problem)
    extra = _extra_at(type_, steps) if found else {}
    write = _WRITERS.get(extra.get("quantity") or extra.get("unit", ""))
    if found is None or write is None:
        return None
    return f"must be {_COMPARED[found[1]]} {write(float(found[2]))}"


def _extra_at(type_: Any, steps: Sequence[str]) -> dict[str, Any]:
    """Notes on the value there; of a list or a map on what is in it."""
    info, extra, _ = _unwrap(_info(type_))
    for step in steps:
        fields = {f.encode_name: f.type for f in info.fields} if isinstance(info, mi.StructType) else {}
        if step not in fields:
            return {}
        info, extra, _ = _unwrap(fields[step])
        while isinstance(info, (mi.ListType, mi.VarTupleType, mi.DictType)):
            info, more, _ = _unwrap(info.value_type if isinstance(info, mi.DictType) else info.item_type)
            extra = {**more, **extra}
    return extra


def _in_words(problem: str) -> str:
    """msgspec's sentence with weft's words for types: ``Expected a number, got text``."""

    def call(types: re.Match[str]) -> str:
        names = [name for name in types[1].split(" | ") if name != "null" or types[1] == "null"]
        return " or ".join(_TYPE_WORDS.get(name, name) for name in names)

    return re.sub(r"`((?:\w+ \| )*\w+)`", call, problem)


def _hint_at(type_: Any, path: str, at: str) -> str | None:
    """Hint that says what the field at ``at`` takes, and what it is."""
    plain = re.sub(r"\[[^]]*\]", "", at)
    doc = next((doc for doc in describe_fields(type_, path) if doc.path.replace("[]", "") == plain), None)
    if doc is None or not doc.description:
        return None
    article = "" if " | " in doc.type or doc.type.startswith(_UNCOUNTED) else "an " if doc.type[0] in "aei" else "a "
    return f"give {article}{doc.type} ({begin_small(doc.description)})"


def describe_fields(type_: Any, path: str = "spec") -> list[FieldDoc]:
    """Every field below ``type_``, depth first, for ``weft schema`` and the reference pages."""
    info, _, _ = _unwrap(_info(type_))
    docs: list[FieldDoc] = []
    if not isinstance(info, mi.StructType):
        return docs
    own = info.cls.__annotations__
    for f in sorted(info.fields, key=lambda f: f.name not in own):  # inherited fields come last
        inner, extra, description = _unwrap(f.type)
        at = f"{path}.{f.encode_name}"
        default = None if f.default is msgspec.NODEFAULT else f.default
        if f.default_factory is not msgspec.NODEFAULT:
            default = f.default_factory()
        docs.append(
            FieldDoc(
                at,
                type_name(inner, extra),
                msgspec.to_builtins(default),
                f.required,
                extra.get("change", "live"),
                description,
            )
        )
        if isinstance(inner, mi.StructType):
            docs += describe_fields(inner.cls, at)
        elif isinstance(inner, mi.ListType):
            item, _, _ = _unwrap(inner.item_type)
            if isinstance(item, mi.StructType):
                docs += describe_fields(item.cls, f"{at}[]")
    return docs


def type_name(info: mi.Type, extra: dict[str, Any]) -> str:
    """The word for a type: size, cores, duration, text, list of text …"""
    if extra.get("shown"):
        return str(extra["shown"])
    if extra.get("quantity"):
        return _QUANTITY_WORDS[extra["quantity"]]
    if isinstance(info, mi.LiteralType):
        return " | ".join(str(v) for v in info.values)
    if isinstance(info, mi.ListType):
        item, item_extra, _ = _unwrap(info.item_type)
        return "list of " + type_name(item, item_extra)
    if isinstance(info, mi.DictType):
        value = _unwrap(info.value_type)[0]
        return (
            "map of lists" if isinstance(value, mi.ListType) else f"map{' of values' * isinstance(value, mi.UnionType)}"
        )
    if isinstance(info, mi.StructType):
        return "fields"
    return {mi.StrType: "text", mi.IntType: "whole number", mi.FloatType: "number", mi.BoolType: "true or false"}.get(
        type(info), "any"
    )


@functools.cache
def change_modes(type_: Any, path: str = "spec") -> Mapping[str, ChangeMode]:
    """Cost of a change of each field, by path."""
    return {doc.path: doc.change for doc in describe_fields(type_, path)}


def find_place(type_: Any, path: Sequence[str], *, in_lists: bool = False) -> PathValues | None:
    """The values at ``path`` below ``type_``; None if there is no such path. A map may have any name. ``in_lists``: the path leads
    on into the items of a list."""
    info, extra, _ = _unwrap(_info(type_))
    for step in path:
        while in_lists and isinstance(info, (mi.ListType, mi.VarTupleType)):
            info, extra, _ = _unwrap(info.item_type)
        if in_lists and isinstance(info, mi.UnionType):
            return PathValues()  # of one of several types, which each have their own fields
        if isinstance(info, mi.StructType):
            fields = {f.encode_name: f.type for f in info.fields}
            if step not in fields:
                return None
            info, extra, _ = _unwrap(fields[step])
        elif isinstance(info, mi.DictType):
            info, extra, _ = _unwrap(info.value_type)
        elif isinstance(info, (mi.AnyType, mi.RawType)):
            return PathValues()
        else:
            return None
    known: tuple[str, ...] = tuple(extra.get("words", ()))
    if isinstance(info, mi.LiteralType):
        known = tuple(map(str, info.values))
    elif isinstance(info, mi.BoolType):
        known = ("true", "false")
    return PathValues(known, extra.get("quantity", ""), isinstance(info, mi.IntType))
