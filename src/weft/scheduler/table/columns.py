"""Attributes of nodes as columns: made when first asked for, kept up to date row by row.

Reads NodeFacts. A text that reads as a number or a quantity is a number too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.contracts.policy import Codes, Texts, Values
from weft.language.amount import read_amount
from weft.scheduler.table.facts import NodeFacts


def read_text(facts: NodeFacts, attribute: str) -> str | None:
    """A node's text ``attribute``, or None."""
    if attribute == "name":
        return facts.name
    if attribute == "uid":
        return facts.uid
    if attribute == "gpu.model":
        return facts.gpus[0].model if facts.gpus else None
    return facts.texts.get(attribute)


def read_number(facts: NodeFacts, attribute: str) -> float | None:
    """A node's number ``attribute``, as far as it follows from facts alone, or None."""
    match attribute:
        case "cpu":
            return facts.capacity[0] / 1000
        case "memory":
            return float(facts.capacity[1])
        case "disk":
            return float(facts.capacity[2])
        case "gpu":
            return float(len(facts.gpus))
        case "gpu.memory":
            return float(facts.gpus[0].memory) if facts.gpus else None
    if attribute in facts.numbers:
        return facts.numbers[attribute]
    if attribute in facts.extras:
        return float(facts.extras[attribute])
    text = facts.texts.get(attribute)
    return None if text is None else read_amount(text, attribute)


class Columns:
    """The columns that were requested so far; their owner numbers the rows."""

    def __init__(self) -> None:
        self._texts: dict[str, Texts] = {}
        self._numbers: dict[str, Values] = {}

    def text(self, attribute: str, nodes: Sequence[NodeFacts]) -> Texts | None:
        """The column over ``nodes``, one a row; None if no node has it."""
        column = self._texts.get(attribute)
        if column is None or column.codes.size < len(nodes):
            column = self._texts[attribute] = _fill_texts(attribute, nodes)
        codes: Codes = column.codes[: len(nodes)]
        return Texts(codes, column.words, column.places) if (codes >= 0).any() else None

    def number(self, attribute: str, nodes: Sequence[NodeFacts]) -> Values | None:
        """The column over ``nodes``, one a row; None if no node has it."""
        column = self._numbers.get(attribute)
        if column is None or column.size < len(nodes):
            column = self._numbers[attribute] = np.full(_length_for(len(nodes)), np.nan)
            column[: len(nodes)] = [_or_nan(read_number(facts, attribute)) for facts in nodes]
        values: Values = column[: len(nodes)]
        return None if np.isnan(values).all() else values

    def put(self, row: int, facts: NodeFacts) -> None:
        """Set row ``row`` from ``facts``."""
        for attribute, texts in self._texts.items():
            if row < texts.codes.size:
                _put_text(texts, row, read_text(facts, attribute))
        for attribute, numbers in self._numbers.items():
            if row < numbers.size:
                numbers[row] = _or_nan(read_number(facts, attribute))


def _fill_texts(attribute: str, nodes: Sequence[NodeFacts]) -> Texts:
    texts = [read_text(facts, attribute) for facts in nodes]
    places = {text: code for code, text in enumerate(dict.fromkeys(text for text in texts if text is not None))}
    codes = np.full(_length_for(len(nodes)), -1, dtype=np.int32)
    if places:
        codes[: len(nodes)] = [-1 if text is None else places[text] for text in texts]
    return Texts(codes, list(places), places)


def _put_text(column: Texts, row: int, text: str | None) -> None:
    if text is None:
        column.codes[row] = -1
        return
    code = column.places.setdefault(text, len(column.words))
    if code == len(column.words):
        column.words.append(text)
    column.codes[row] = code


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _length_for(count: int) -> int:
    return max(16, count + count // 4)
