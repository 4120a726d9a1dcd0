"""Bounds on a PromQL expression, checked before the database sees it. Pure.

They keep out regular expressions that end the database (VictoriaMetrics 1.79.5 writes ``x{1,800}`` out as 800 groups, one in
another, and panics where it can't read that again), functions that make a label longer at each call, which no time limit ends, and
functions that make many series of one. Only Prometheus' own functions may be called: the database has a hundred more, and each
release of it may bring others.
"""

from __future__ import annotations

import re

from weft.objects.errors import InvalidInput
from weft.objects.schema import suggest

MOST_QUERY = 4096  # characters
MOST_LABEL_CALLS = 3
MOST_LABEL_WORDS = 48  # strings, and $1 in them, where labels are made
MOST_REPEATS = 100  # a count in braces in a regular expression, and all of a query's together
MOST_NESTED = 50  # parentheses in a regular expression
_REPEATS = re.compile(r"\{\s*(\d+)\s*(?:,\s*(\d*)\s*)?\}")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))", re.DOTALL)  # of Go
STRING = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`""")
_WITH = re.compile(r"\bwith\s*\(", re.IGNORECASE)
_LABEL_CALL = re.compile(r"\blabel_\w+\s*\(", re.IGNORECASE)
_CALL = re.compile(r"""([^\s()\[\]{},=!<>~+\-*/%^@"'`]+)\s*\(""")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
# What may stand before a parenthesis: Prometheus' functions and aggregations, without count_values, which makes a series of each
# value, and the words of its operators.
_CALLABLE = frozenset(
    """
    abs absent absent_over_time acos acosh asin asinh atan atanh avg_over_time ceil changes clamp clamp_max clamp_min cos cosh
    count_over_time day_of_month day_of_week day_of_year days_in_month deg delta deriv exp floor histogram_avg histogram_count
    histogram_fraction histogram_quantile histogram_stddev histogram_stdvar histogram_sum hour idelta increase irate label_join
    label_replace last_over_time ln log10 log2 mad_over_time max_over_time min_over_time minute month pi predict_linear
    present_over_time quantile_over_time rad rate resets round scalar sgn sin sinh sort sort_desc sqrt stddev_over_time
    stdvar_over_time sum_over_time tan tanh time timestamp vector year
    avg bottomk count group limitk max min quantile stddev stdvar sum topk
    and atan2 bool by end group_left group_right ignoring on or start unless without
    """.split()
)


def check_query(text: str, field: str, what: str = "") -> str:
    """``text`` if it is harmless; whether it is a query, the database says. Raises InvalidInput."""
    if not text.strip():
        raise InvalidInput(f"{what or f'parameter {field}'} is missing", field=field, hint="like weft_guest_cpu_cores")
    if len(text) > MOST_QUERY:
        raise InvalidInput(
            f"{field} has {len(text)} characters; at most {MOST_QUERY} are read",
            field=field,
            hint="write a shorter one",
        )
    strings = STRING.findall(text)
    bare = STRING.sub(" ", text)
    if "\\" in bare:
        raise InvalidInput(f"{field}: a backslash stands outside a string", field=field, hint="remove it")
    if _WITH.search(bare):
        raise InvalidInput(
            f"{field}: WITH templates are not part of PromQL", field=field, hint="write the expression out"
        )
    for name in _CALL.findall(bare):
        if name.lower() not in _CALLABLE:
            meant = suggest(name.lower(), sorted(_CALLABLE))
            raise InvalidInput(
                f"{field}: {name[:40]!r} is not a function that queries may use",
                field=field,
                hint=f"did you mean {meant}?" if meant else "use Prometheus' functions, but for count_values",
            )
    _check_expressions(strings, field)
    calls = len(_LABEL_CALL.findall(bare))
    if calls > MOST_LABEL_CALLS or (calls and len(strings) + text.count("$") > MOST_LABEL_WORDS):
        raise InvalidInput(
            f"{field}: too much of the query makes labels (at most {MOST_LABEL_CALLS} calls, {MOST_LABEL_WORDS} strings)",
            field=field,
            hint="rename the labels where the answer is shown",
        )
    return text


def _check_expressions(strings: list[str], field: str) -> None:
    """Any of ``strings`` may be a regular expression. Raises InvalidInput for one that would get large or deep."""
    repeats = 0
    for whole in strings:
        if whole.startswith("#"):
            continue
        text = whole[1:-1] if whole[0] == "`" else _ESCAPE.sub(_unescape, whole[1:-1])
        repeats += sum(int(most or least) for least, most in _REPEATS.findall(text))
        depth = deepest = 0
        for char in text:
            depth = max(0, depth + (char == "(") - (char == ")"))
            deepest = max(deepest, depth)
        if deepest > MOST_NESTED:
            raise InvalidInput(
                f"{field}: a string in it has {deepest} parentheses inside each other; at most {MOST_NESTED} may be",
                field=field,
                hint="write a simpler regular expression",
            )
    if repeats > MOST_REPEATS:
        raise InvalidInput(
            f"{field}: the repetitions in its regular expressions add up to {repeats}; at most {MOST_REPEATS} are allowed",
            field=field,
            hint="write a smaller {n,m}, or * or +",
        )


def _unescape(found: re.Match[str]) -> str:
    code = found[1] or found[2] or found[3]
    number = int(code, 16) if code else int(found[4], 8) if found[4] else -1
    if number < 0:
        return found[0] if found[5] in "abfnrtv\\" else str(found[5])  # what matters here stays what it is
    return chr(number) if number < 0x110000 else ""


def check_balanced(text: str, field: str) -> None:
    """Raises InvalidInput unless ``text`` can stand between parentheses: it closes none that it hasn't opened, and each string."""
    bare, open_ = STRING.sub(" ", text), list[str]()
    for char in bare:
        if char in "([{":
            open_.append(_CLOSING[char])
        elif (char in ")]}" and (not open_ or open_.pop() != char)) or char in "\"'`":
            break
    else:
        if not open_:
            return
    raise InvalidInput(
        f"{field}: a parenthesis, bracket or quote has no counterpart", field=field, hint="add it, or remove this one"
    )
