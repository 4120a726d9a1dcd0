"""What `weft doctor` makes of what the server tells it."""

from __future__ import annotations

import pytest

from weft.cli.verbs.doctor import judge_volume


@pytest.mark.parametrize(
    ("home", "copies", "fact"),
    [
        ("u-n1", ["n2"], "its data is on n1; n2 has an unexplained copy"),
        (
            None,
            ["n2", "n3"],
            "n2, n3 hold unexplained copies of its data; weft can't tell which one is right",
        ),
        (
            "u-n4",
            ["n2", "n3"],
            "n2, n3 hold unexplained copies of its data; weft can't tell which one is right",
        ),
        ("u-gone", ["n2"], "its data is on gone; n2 has an unexplained copy"),
    ],
)
def test_doctor_says_which_data_is_used_and_which_is_not(home: str | None, copies: list[str], fact: str) -> None:
    node = home and home.removeprefix("u-")
    volume = {"name": "data", "uid": "v", "status": {"node": node, "node_uid": home, "copies": copies}}
    found = judge_volume(volume, {"u-n1": ["v"], "u-n2": ["v"], "u-n3": ["v"], "u-n4": []})
    assert found is not None and found.fact == fact
    assert judge_volume({**volume, "status": {"node": node, "node_uid": home}}, {}) is None
