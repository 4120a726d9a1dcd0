"""The Python side of a copied machine: found by Python, out of the way of another sitecustomize, and what it renews."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import weft.images.clone.build

FOLDER = Path(weft.images.clone.build.__file__).parent
DRAW = """
import random, ssl, tempfile, sys, numpy.random
import sitecustomize
def draw():
    random.seed(1); numpy.random.seed(1); next(tempfile._get_candidate_names())
    tempfile._name_sequence.rng.seed(1)
    if len(sys.argv) > 1: sitecustomize.reseed()
    return random.random(), float(numpy.random.random()), next(tempfile._get_candidate_names())
print(sitecustomize.__file__, *map(lambda pair: pair[0] != pair[1], zip(draw(), draw())))
"""


def run(*arguments: str, path: str = "") -> str:
    env = {**os.environ, "PYTHONPATH": f"{FOLDER}:{path}"}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_generators_that_were_copied_give_other_numbers() -> None:
    assert run("-c", DRAW).split() == [str(FOLDER / "sitecustomize.py"), "False", "False", "False"]
    assert run("-c", DRAW, "renew").split()[1:] == ["True", "True", "True"]


def test_another_sitecustomize_is_run_as_well(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('mine')\n")
    assert run("-c", "pass", path=str(tmp_path)) == "mine\n"


def test_one_that_fails_does_not_take_the_hold_away(tmp_path: Path) -> None:
    package = tmp_path / "awslambdaric"
    package.mkdir()
    for name in ("__init__", "bootstrap", "lambda_runtime_client", "lambda_runtime_hooks_runner"):
        (package / f"{name}.py").write_text("")
    env = {**os.environ, "PYTHONPATH": f"{FOLDER}:{tmp_path}"}
    said = subprocess.run(
        [sys.executable, "-c", "import awslambdaric.bootstrap; print('went on')"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert said.stdout == "went on\n", said.stderr
    assert "random numbers of clones aren't seeded again" in said.stderr
