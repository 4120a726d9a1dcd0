"""Comments of structs' fields are their descriptions in the API's document."""

from __future__ import annotations

import re
import typing
from typing import Annotated

import msgspec
import pytest

from weft.api.field_texts import describe_struct, find_structs
from weft.api.openapi import describe_api, render
from weft.kinds.allocation import AllocatedGpu


class Wheel(msgspec.Struct, rename="camel"):
    rim_size: int  # inches
    spokes: int
    # How hard it is pumped,
    # in bar.
    pressure: float = 1.0
    tint: str = "#fff"
    maker: str | None = None  # ``acme``; None: unknown


class Axle(Wheel):
    wheels: dict[str, list[Wheel | None]] = {}
    spokes: int = 8  # of both


def test_a_field_has_the_comment_beside_it_or_right_above_it() -> None:
    assert describe_struct(Wheel) == {
        "rimSize": "inches",
        "pressure": "How hard it is pumped, in bar.",
        "maker": "`acme`; null: unknown",
    }


def test_a_struct_has_its_bases_texts_and_its_own_first() -> None:
    assert describe_struct(Axle) == {**describe_struct(Wheel), "spokes": "of both"}


def test_structs_are_found_at_any_depth() -> None:
    assert find_structs([list[Axle]]) == {Axle, Wheel}


def test_the_document_has_the_comments() -> None:
    properties = describe_api()["components"]["schemas"]["AllocatedGpu"]["properties"]
    assert properties["share"]["description"] == describe_struct(AllocatedGpu)["share"]


@pytest.mark.parametrize("zero", [0, 0.0])
def test_the_document_is_the_same_whichever_bound_typing_met_last(zero: float) -> None:
    """It takes Meta(ge=0) and Meta(ge=0.0) for one, and remembers some of the last it met."""
    for cleanup in typing._cleanups:  # type: ignore[attr-defined]
        cleanup()
    assert msgspec.json.schema(Annotated[float, msgspec.Meta(ge=zero)])["minimum"] == 0
    assert not re.search(r'"(exclusiveM|m)(in|ax)imum": \d+\.0\b', render())
