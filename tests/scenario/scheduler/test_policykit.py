"""The kit says of a policy what a server would find wrong with it, and nothing of one that is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.launch.placement.policykit import main, read_policy
from weft.objects.errors import InvalidInput
from weft.scheduler.own_policies import kit
from weft.scheduler.own_policies.template import TEMPLATE


def tried(path: Path, source: str) -> dict[str, bool]:
    path.write_text(source)
    return {check.name: check.passed for check in kit.try_policy(f"file:{path}", SystemClock())}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "SIZES", (1, 2, 7, 50))
    monkeypatch.setattr(kit, "PATIENCE_SECONDS", 20.0)  # a loaded machine is not what is tried here


RECIPE = Path(__file__).parents[3] / "docs/recipes/add-a-policy.md"


def test_what_init_prints_passes_and_so_does_the_policy_of_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "TIMEOUT_SECONDS", kit.PATIENCE_SECONDS)  # a loaded machine is not what is tried here
    assert main(["init"]) == 0
    (tmp_path / "mine.py").write_text(capsys.readouterr().out)
    assert main(["test", f"{tmp_path}/mine.py"]) == 0
    told = capsys.readouterr().out
    assert all(tried(tmp_path / "shown.py", RECIPE.read_text().split("```python\n")[1].split("```")[0]).values())
    assert told.count("✓") == 4 and f"--strategy file:{tmp_path}/mine.py" in told and TEMPLATE.count("def score") == 1


@pytest.mark.parametrize(
    ("body", "failed"),
    [
        ("return [1.0]", "answers"),
        ("return 200.0 * table.allocated[0] / (table.allocated[0] + 1)", "answers"),
        ("return table.capacity[0] / table.capacity[1]", "answers"),
        ("return 1 / 0", "answers"),
        ("import random; return [random.random() for _ in table.names]", "same"),
        ("import os; return [os.getpid() % 101 for _ in table.names]", "same"),
    ],
)
def test_one_that_is_wrong_fails_the_check_that_says_so(tmp_path: Path, body: str, failed: str) -> None:
    found = tried(tmp_path / "mine.py", f"def score(table, request, occasion):\n    {body}\n")
    assert [name for name, passed in found.items() if not passed] == [failed]


def test_one_that_can_not_be_read_fails_at_once(tmp_path: Path) -> None:
    assert tried(tmp_path / "mine.py", "def score(:\n") == {"read": False}
    assert main(["test", f"{tmp_path}/gone.py"]) == 1


def test_a_command_line_that_makes_no_sense_says_where_to_read_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err == "error: the following arguments are required: init|test\nweft policykit --help\n"


def test_a_path_is_made_full_and_must_be_pythons() -> None:
    assert read_policy("mine.py") == f"file:{Path.cwd()}/mine.py" and read_policy("entry:acme") == "entry:acme"
    with pytest.raises(InvalidInput):
        read_policy("mine.txt")
