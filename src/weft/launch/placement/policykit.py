"""``weft policykit``: write your own placement policy, and test it before a server runs it. Needs no server, no root."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from weft.contracts.clock import SystemClock
from weft.kinds.fields.strategy import read_strategy
from weft.launch.placement.arguments import Parser, complain
from weft.objects.errors import InvalidInput
from weft.scheduler.own_policies.kit import try_policy
from weft.scheduler.own_policies.template import TEMPLATE


def main(argv: Sequence[str]) -> int:
    """Run it; the exit code: 0 if all checks passed, 1 if not."""
    try:
        options = _parse(argv)
        if options.what == "init":
            print(TEMPLATE, end="")
            return 0
        name = read_policy(options.policy)
    except InvalidInput as problem:
        return complain(problem)
    passed = True
    for check in try_policy(name, SystemClock(), options.seed):
        passed = passed and check.passed
        print(f"{'✓' if check.passed else '✗'} {check.name:<8} {check.seen}", flush=True)
    if passed:
        print(f"weft policy create NAME --strategy {name}")
    return 0 if passed else 1


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="weft policykit", description="Write and test your own placement policies.")
    commands = parser.add_subparsers(dest="what", title="what it does", metavar="init|test", required=True)
    text = "print a policy to start from"
    commands.add_parser("init", help=text, description=f"{text[:1].upper()}{text[1:]}: weft policykit init > mine.py")
    text = "test a policy as a server would run it, on random fabrics"
    test = commands.add_parser("test", help=text, description=f"{text[:1].upper()}{text[1:]}.")
    test.add_argument("policy", metavar="FILE", help="the policy's file, or entry:NAME")
    test.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random fabrics (default 0)")
    return parser.parse_args(argv)


def read_policy(word: str) -> str:
    """``file:/full/path.py`` or ``entry:NAME``. Raises InvalidInput."""
    if word.startswith(("entry:", "file:")):
        return read_strategy(word, "policy")
    return read_strategy(f"file:{Path(word).absolute()}", "policy")
