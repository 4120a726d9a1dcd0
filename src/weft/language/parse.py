"""Reads a constraint: text to tree, by recursive descent. Pure.

expression := part { OR part }             AND and , bind closer than OR
part       := term { (AND | ,) term }
term       := NOT term | "(" expression ")" | exists "(" attribute ")" | @name | @project/name
            | attribute operator value | attribute (in | not_in) "(" value { , value } ")"
"""

from __future__ import annotations

import msgspec

from weft.language.amount import read_amount
from weft.language.complaint import point_at
from weft.language.lexer import Token, split
from weft.language.tree import (
    SIGNS,
    Compare,
    Exists,
    Expression,
    Leaf,
    Named,
    Not,
    Operator,
    Within,
    either,
    every,
)
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_shared_name
from weft.objects.schema import suggest

DEEPEST = 32
MOST_PARTS = 64
MOST_VALUES = 256
MOST_LETTERS = 256
_OPERATORS: dict[str, Operator] = {**{sign: operator for operator, sign in SIGNS.items()}, "==": "eq"}
_WORD_OPERATORS: dict[str, Operator] = {operator: operator for operator in SIGNS}
_MEANT = {"ne": "neq", "equals": "eq", "is": "eq", "gte": "ge", "lte": "le", "notin": "not_in", "nin": "not_in"}
_UNITS = {p + rest for p in "kmgtp" for rest in ("", "i", "b", "ib")} | {"b"}


class Parsed(msgspec.Struct, frozen=True):
    text: str
    tree: Expression
    spans: tuple[tuple[int, int], ...]  # of each leaf, in order: its first character in ``text``, and how many


def parse(text: str, field: str = "constraint") -> Parsed:
    """``text`` as a tree, with the places of its leaves. Raises InvalidInput that points at the character."""
    return _Parser(text, field).read()


def read_expression(text: str, field: str = "constraint") -> Expression:
    """``text`` as a tree. Raises InvalidInput."""
    return parse(text, field).tree


class _Parser:
    def __init__(self, text: str, field: str) -> None:
        self._text = text
        self._field = field
        self._tokens = split(text, field)
        self._next = 0
        self._depth = 0
        self._spans: list[tuple[int, int]] = []

    def read(self) -> Parsed:
        if len(self._tokens) == 1:
            raise point_at(
                self._text, 0, 1, "the expression is empty", self._field, "write like storage=nvme,memory>=32GB"
            )
        tree = self._expression()
        if self._token.kind != "end":
            raise self._lost()
        return Parsed(self._text, tree, tuple(self._spans))

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    def _take(self) -> Token:
        token = self._token
        self._next += 1
        return token

    def _is_word(self, *words: str) -> bool:
        return self._token.kind == "word" and self._token.text.lower() in words

    def _is_mark(self, mark: str) -> bool:
        return self._token.kind == "mark" and self._token.text == mark

    def _refuse(self, token: Token, fact: str, hint: str | None = None) -> InvalidInput:
        return point_at(self._text, token.at, token.length, fact, self._field, hint)

    def _expression(self) -> Expression:
        parts = [self._part()]
        while self._is_word("or"):
            self._take()
            parts.append(self._part())
        return either(parts)

    def _part(self) -> Expression:
        parts = [self._term()]
        while self._is_mark(",") or self._is_word("and"):
            self._take()
            parts.append(self._term())
        return every(parts)

    def _term(self) -> Expression:
        token = self._token
        if self._is_word("not") or self._is_mark("("):
            self._depth += 1
            if self._depth > DEEPEST:
                raise self._refuse(token, f"nested deeper than {DEEPEST}", "nest less deeply")
            self._take()
            if token.kind == "word":
                tree: Expression = Not(self._term())
            else:
                tree = self._expression()
                self._close(token)
            self._depth -= 1
            return tree
        leaf = self._leaf()
        end = self._tokens[self._next - 1]
        self._spans.append((token.at, end.at + end.length - token.at))
        if len(self._spans) > MOST_PARTS:
            raise self._refuse(token, f"more than {MOST_PARTS} comparisons", "shorten the expression")
        return leaf

    def _leaf(self) -> Leaf:
        if self._is_mark("@"):
            self._take()
            token = self._take()
            if token.kind != "word":
                raise self._refuse(token, "the name of a constraint must follow @", "weft constraint list")
            try:
                return Named(check_shared_name(token.text, self._field))
            except InvalidInput as problem:
                raise self._refuse(token, "is not the name of a constraint", problem.hint) from None
        if self._is_word("exists") and self._tokens[self._next + 1].text == "(":
            self._take()
            opened = self._take()
            attribute = self._attribute()
            self._close(opened)
            return Exists(attribute)
        attribute = self._attribute()
        token = self._take()
        if token.kind == "sign":
            return self._compare(attribute, _OPERATORS[token.text], token)
        word = token.text.lower() if token.kind == "word" else ""
        if word in _WORD_OPERATORS:
            return self._compare(attribute, _WORD_OPERATORS[word], token)
        if word == "not" and self._is_word("in"):
            self._take()
            word = "not_in"
        if word in ("in", "not_in"):
            return Within(attribute, self._values(word), word == "in")
        raise self._refuse_operator(token, attribute)

    def _attribute(self) -> str:
        token = self._token
        if token.kind not in ("word", "quoted") or self._is_word("and", "or"):
            raise self._refuse(
                token,
                "an attribute is missing"
                if token.kind == "end"
                else f"an attribute must stand here, not {token.text[:40]!r}",
            )
        self._take()
        if not token.text or len(token.text) > MOST_LETTERS:
            raise self._refuse(
                token,
                f"an attribute has 1 to {MOST_LETTERS} characters",
                "weft node describe NODE lists its attributes",
            )
        return token.text

    def _compare(self, attribute: str, operator: Operator, sign: Token) -> Compare:
        token = self._token
        value = self._value(f"the value after {sign.text} is missing")
        if operator not in ("eq", "neq") and read_amount(value, attribute) is None:
            raise self._refuse(
                token,
                f"{sign.text} compares numbers, and {value[:40]!r} is not a number",
                "write a number or a size like 32GB",
            )
        return Compare(attribute, operator, value)

    def _value(self, missing: str) -> str:
        token = self._token
        if token.kind not in ("word", "quoted") or self._is_word("and", "or", "not"):
            raise self._refuse(
                token,
                missing,
                'write it in quotation marks if it is a word like "and"' if token.kind == "word" else None,
            )
        self._take()
        if len(token.text) > MOST_LETTERS:
            raise self._refuse(token, f"a value has at most {MOST_LETTERS} characters", "write a shorter value")
        if token.kind == "word" and token.text[-1].isdigit() and self._is_word(*_UNITS):
            return token.text + self._take().text  # 32 GB
        return token.text

    def _values(self, word: str) -> tuple[str, ...]:
        opened = self._take()
        if opened.text != "(" or opened.kind != "mark":
            raise self._refuse(opened, f"values in parentheses must follow {word}", f"write like zone {word} (a,b)")
        values = [self._value("a value is missing")]
        while self._is_mark(","):
            self._take()
            values.append(self._value("a value is missing"))
            if len(values) > MOST_VALUES:
                raise self._refuse(self._token, f"more than {MOST_VALUES} values", "compare with fewer values")
        self._close(opened)
        return tuple(values)

    def _close(self, opened: Token) -> None:
        if self._is_mark(")"):
            self._take()
        elif self._token.kind == "end":
            raise self._refuse(opened, "this parenthesis isn't closed", "close it with )")
        else:
            raise self._lost()

    def _lost(self) -> InvalidInput:
        token = self._token
        if self._is_mark(")"):
            return self._refuse(token, "this parenthesis was never opened", "remove it")
        meant = suggest(token.text.lower(), ["and", "or"]) if token.kind == "word" else None
        hint = f"did you mean {meant.upper()}?" if meant else "join parts with , or AND or OR"
        return self._refuse(token, f"{token.text[:40]!r} can't be used here", hint)

    def _refuse_operator(self, token: Token, attribute: str) -> InvalidInput:
        hint = f"compare it: {attribute[:40]}=VALUE, or test for it: exists({attribute[:40]})"
        if token.kind == "end":
            hint += "; put an expression with > or < in quotes, or the shell takes them for files"
        if token.kind == "end" or (token.kind == "mark" and token.text in "),"):
            return self._refuse(token, f"an operator is missing after {attribute[:40]!r}", hint)
        word = token.text.lower()
        meant = _MEANT.get(word) or suggest(word, [*_WORD_OPERATORS, "in", "not_in"])
        if meant:
            hint = f"did you mean {meant}?"
        return self._refuse(token, f"{token.text[:40]!r} is not an operator", hint)
