"""Flags that are more than fields: a function's code on this machine, and when it is invoked by itself; and a model's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from weft.cli.command.flags import refuse_twice
from weft.cli.function.code import Packed, is_path, pack, pack_model, put
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput
from weft.objects.json_text import decode_json

_PARTS = ("zone", "input", "qualifier")


def make_more_flags(kind: Kind) -> list[click.Parameter]:
    """None for kinds without uploads."""
    if kind.admission.uploads is None:
        return []
    if kind.admission.upload_sort == "onnx":
        return [
            click.Option(
                ["--file"], metavar="FILE.onnx", default=None, help="The model: an ONNX file, which is uploaded."
            )
        ]
    return [
        click.Option(
            ["--code"], metavar="DIR|ZIP", default=None, help="The function's code: a folder, or a zip file of one."
        ),
        click.Option(
            ["--schedule", "schedules"],
            multiple=True,
            metavar="CRON",
            help="When to invoke it by the clock: 'M H DAY MONTH WEEKDAY[;zone=ZONE][;input=JSON][;qualifier=Q]', or @daily; "
            "'' for never.",
        ),
    ]


def read_more_flags(kind: Kind, given: Mapping[str, Any], spec: dict[str, Any], beside: Any = None) -> Packed | None:
    """Put them into ``spec``; the code to upload. ``beside``: the folder of the file that the spec is
    from. Raises InvalidInput."""
    if kind.admission.uploads is None:
        return None
    if kind.admission.upload_sort == "onnx":
        file = given.get("file") or (spec.get("file") if is_path(spec.get("file")) else None)
        if file is None:
            return None
        model = pack_model(file, None if given.get("file") else beside)
        put(spec, model)
        return model
    if given.get("schedules"):
        spec["schedule"] = [_read_schedule(text) for text in given["schedules"] if text.strip()]
    packed = None
    if given.get("code"):
        packed = pack(given["code"])
        if spec.get("image"):
            spec["image"] = ""
    elif is_path(spec.get("code")):
        packed = pack(spec["code"], beside)
    if packed is not None:
        put(spec, packed)
    return packed


def _read_schedule(text: str) -> dict[str, Any]:
    """``30 2 * * *;zone=Europe/Berlin;input={"full":true}``: what follows input= is all JSON."""
    cron, semicolon, rest = text.partition(";")
    schedule: dict[str, Any] = {"cron": cron.strip()}
    while semicolon:
        name, sign, value = rest.partition("=")
        if name not in _PARTS or not sign:
            raise InvalidInput(
                f"--schedule {text[:80]!r}: {name[:40]!r} is not one of {', '.join(_PARTS)}",
                field="schedule",
                hint="like '30 2 * * *;zone=Europe/Berlin;input={\"full\": true}'",
            )
        refuse_twice(name, schedule, "--schedule")
        if name == "input":
            try:
                schedule["input"] = decode_json(value.encode())
            except (ValueError, RecursionError) as problem:
                raise InvalidInput(
                    f"--schedule: input is not JSON: {problem}", field="schedule", hint="input= must come last"
                ) from None
            return schedule
        schedule[name], semicolon, rest = value.partition(";")
    return schedule
