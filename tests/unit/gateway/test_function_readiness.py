"""What a function's status says of code that doesn't come up."""

from __future__ import annotations

import pytest

from weft.gateway.function.readiness import read_failure


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        ('{"errorMessage": "no shop", "errorType": "X", "stackTrace": []}', ["no shop"]),
        (
            '{"errorMessage": "a\\nb", "stackTrace": ["  File \\"app.py\\", line 1\\n    import shop\\n", "\\n"]}',
            ["a", "b", '  File "app.py", line 1', "    import shop"],
        ),
        ('{"errorMessage": null, "stackTrace": 7}', ["the runtime gave no reason"]),
        ("exit code 1\nlast words", ["exit code 1", "last words"]),
        ("[" * 100_000, ["[" * 100_000]),
        ("", []),
    ],
)
def test_it_is_read_in_lines(said: str, lines: list[str]) -> None:
    assert read_failure(said) == lines
