"""What it costs to find out, at each request, who calls and whether that is allowed: in CPU time, for a token of its own and for a
user's, who is named in a few of 2,000 role bindings. And whether each operation is open to whom it should be, in a real API."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.scenario.people.test_api_permissions import TOKENS, open_lab, try_operations

from benchmarks.measurement import Figure, Measurement
from weft.kinds.permissions import find_permissions
from weft.kinds.rolebinding import RoleBindingSpec
from weft.kinds.token import TokenSpec
from weft.objects.identity import Ref
from weft.trust.credentials import StoredToken, make_actor
from weft.trust.directory import Account, Directory

OWN = {"starter": find_permissions({"vm": ["get", "list", "start", "stop"], "image": ["get", "list"]})}
USERS, GROUPS, BINDINGS, CHECKS, GOAL_US = 500, 200, 2000, 20_000, 20.0


def make_directory() -> Directory:
    """Each user is in one group; each binding names four users and one group, in a project of its own."""
    accounts = {f"u{number}": Account(f"uid{number}", False, (f"g{number % GROUPS}",)) for number in range(USERS)}
    bindings = [
        RoleBindingSpec(
            role="viewer",
            project=f"p{number}",
            users=[f"u{(number + at) % USERS}" for at in range(4)],
            groups=[f"g{number % GROUPS}"],
        )
        for number in range(BINDINGS)
    ]
    return Directory(accounts.get, lambda: bindings, OWN.get, lambda: 0)


def measure() -> Measurement:
    directory, user = make_directory(), Ref(kind="user", name="u7", uid="uid7")
    own = StoredToken("t", TokenSpec(use="access", role="admin", project="p7"))
    starter = StoredToken("t", TokenSpec(use="access", role="starter", project="p7"))
    users = StoredToken("t", TokenSpec(use="access", role=""), user)
    figures = []
    for what, token in (("a token with a role", own), ("a token with an own role", starter), ("a user's token", users)):
        for where, project in (("allowed", "p7"), ("refused", "elsewhere")):
            figures.append(time_checks(f"{what}, {where}", functools.partial(check, directory, token, project)))
    figures.append(try_all_operations())
    return Measurement(
        "permissions",
        f"Who calls, and whether it may: CPU time of each of {CHECKS:,} checks, {BINDINGS:,} role bindings.",
        figures,
    )


def try_all_operations() -> Figure:
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(open_lab(Path(folder))) as lab:
        outcomes = [try_operations(lab, role, limited) for role, limited in TOKENS]
    tried, wrong = sum(tried for tried, _ in outcomes), [one for _, wrong in outcomes for one in wrong]
    return Figure(
        f"every operation × {len(TOKENS)} tokens (a role in one project, or in all) × own and foreign project: as the page says",
        f"{tried - len(wrong):,} of {tried:,}",
        goal="all",
        kept=not wrong,
    )


def check(directory: Directory, token: StoredToken, project: str) -> bool:
    return make_actor(token, directory, 1.0).permits("vm:get", project)


def time_checks(what: str, work: Callable[[], object]) -> Figure:
    work()
    took = []
    for _ in range(CHECKS):
        began = time.process_time_ns()
        work()
        took.append((time.process_time_ns() - began) / 1000)
    took.sort()
    p99 = took[int(0.99 * len(took))]
    return Figure(
        what, f"p99 {p99:.1f} µs (median {took[len(took) // 2]:.1f})", goal=f"≤ {GOAL_US:g} µs", kept=p99 <= GOAL_US
    )
