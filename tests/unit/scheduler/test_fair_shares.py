"""Whose turn it is where several projects wait: that of the one with the least weighted dominant share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import ALL_EXAMPLES, examples

from weft.contracts.policy import Request
from weft.scheduler.engine.explain import Explanation
from weft.scheduler.queue.lanes import Queue
from weft.scheduler.queue.turn import AT_ONCE, PATIENT, QueuePosition, mix

NO = Explanation(0, [], {}, "insufficientResources", "too little is free")
Amounts = tuple[int, int, int]
TOTAL: Amounts = (120, 240, 60)


class Project(msgspec.Struct):
    """All its tasks need the same; what is placed is ``used``."""

    needs: Amounts
    weight: float
    tasks: int
    used: Amounts = (0, 0, 0)
    level: float = 0.0

    def dominant(self, used: Amounts | None = None) -> float:
        return max(amount / total for amount, total in zip(used or self.used, TOTAL, strict=True))

    @property
    def weighted(self) -> float:
        return self.dominant() / self.weight

    @property
    def placed(self) -> int:
        return max(u // n for u, n in zip(self.used, self.needs, strict=True) if n)


class Cluster:
    """Decides as the scheduler does: batch after batch, until nothing fits."""

    def __init__(self, projects: Sequence[Project], total: Amounts = TOTAL) -> None:
        self.projects = {f"p{number}": project for number, project in enumerate(projects)}
        self.free = total
        self.queue = Queue()
        self.order: list[str] = []
        self.refused: set[str] = set()
        for name, project in self.projects.items():
            for number in range(project.tasks):
                self.queue.offer(f"{name}/{number:03}", QueuePosition(project.level, name, float(number)))

    def run(self, most: int, after_each: Callable[[str], None] = lambda project: None) -> None:
        while self.queue.ready:
            keys = self.queue.take(most, self._make_shares)
            for at, key in enumerate(keys, 1):
                name = key.split("/")[0]
                project = self.projects[name]
                request = Request((*project.needs[:2], 0), "q35", "least_loaded", node=name)
                if all(n <= f for n, f in zip(project.needs, self.free, strict=True)):
                    after_each(name)
                    self.free = tuple(f - n for n, f in zip(project.needs, self.free, strict=True))  # type: ignore[assignment]
                    project.used = add(project.used, project.needs)
                    self.order.append(name)
                    continue
                self.refused.add(name)
                self.queue.refuse(key, request, NO)
                if self.queue.contended:
                    self.queue.give_back(keys[at:])
                    break

    def _make_shares(self) -> Supposed:
        return Supposed(self.projects)


class Supposed:
    def __init__(self, projects: dict[str, Project]) -> None:
        self._projects = projects
        self._used = {name: project.used for name, project in projects.items()}

    def weighted(self, project: str) -> float:
        return self._projects[project].dominant(self._used[project]) / self._projects[project].weight

    def suppose(self, key: str) -> None:
        name = key.split("/")[0]
        self._used[name] = add(self._used[name], self._projects[name].needs)


def add(some: Amounts, more: Amounts) -> Amounts:
    return some[0] + more[0], some[1] + more[1], some[2] + more[2]


needs = st.tuples(st.integers(1, 12), st.integers(0, 24), st.integers(0, 6))
weights = st.sampled_from((0.5, 1.0, 2.0, 3.0))
projects = st.lists(st.builds(Project, needs=needs, weight=weights, tasks=st.integers(1, 150)), min_size=2, max_size=4)


@settings(max_examples=examples(200), deadline=None)
@given(projects, st.integers(1, 99))
def test_each_placement_is_of_the_project_with_the_least_share_of_those_that_still_fit(
    made: list[Project], most: int
) -> None:
    cluster = Cluster(made, TOTAL)

    def check(name: str) -> None:
        pending = [p for n, p in cluster.projects.items() if p.placed < p.tasks and n not in cluster.refused]
        assert cluster.projects[name].weighted <= min(one.weighted for one in pending) + 1e-9

    cluster.run(most, check)
    assert len(cluster.order) == sum(project.placed for project in made)


@settings(max_examples=examples(200), deadline=None)
@given(projects, st.integers(1, 99))
def test_each_project_has_its_part_of_the_cluster_or_all_that_it_wants(made: list[Project], most: int) -> None:
    """The sharing incentive: nobody would have more of a part of the cluster to itself. Tasks are whole, so each project may be
    ahead by one of its own, and the last one that doesn't fit leaves less than itself."""
    cluster = Cluster(made, TOTAL)
    cluster.run(most)
    weights, ahead = sum(project.weight for project in made), sum(project.dominant(project.needs) for project in made)
    for project in made:
        assert project.placed == project.tasks or project.weighted * weights > 1 - ahead - 1e-9


@settings(max_examples=200 if ALL_EXAMPLES else 20, deadline=None)
@given(st.tuples(weights, weights), needs, needs)
def test_two_projects_with_work_that_waits_come_to_equal_weighted_shares(
    weights: tuple[float, float], one: Amounts, other: Amounts
) -> None:
    made = [Project(need, weight, 1000) for need, weight in zip((one, other), weights, strict=True)]
    cluster = Cluster(made, TOTAL)
    differences = []

    def check(name: str) -> None:
        if not cluster.refused:
            differences.append(abs(made[0].weighted - made[1].weighted))

    cluster.run(99, check)
    largest = max(project.dominant(project.needs) / project.weight for project in made)
    assert max(differences) <= largest + 1e-9


def test_ghodsi_s_example() -> None:
    """9 CPUs and 18 GB, tasks of (1 CPU, 4 GB) and (3 CPUs, 1 GB): three and two of them, with a share of two thirds each."""
    made = [Project((1, 4, 0), 1.0, 100), Project((3, 1, 0), 1.0, 100)]
    global TOTAL
    before, TOTAL = TOTAL, (9, 18, 1)
    try:
        Cluster(made, (9, 18, 1)).run(99)
    finally:
        TOTAL = before
    assert [project.placed for project in made] == [3, 2]


def test_priority_comes_before_shares_and_an_hour_s_wait_before_both() -> None:
    queue = Queue()
    for key, turn in {
        "rich/dear": QueuePosition(5.0, "rich", 9.0),
        "poor/cheap": QueuePosition(0.0, "poor", 1.0),
        "rich/cheap": QueuePosition(0.0, "rich", 0.0),
        "rich/old": QueuePosition(PATIENT, "", 2.0),
        "rich/now": QueuePosition(AT_ONCE, "", 9.0),
    }.items():
        queue.offer(key, turn)
    rich = Project((1, 1, 1), 1.0, 9, used=(60, 60, 6))
    shares = Supposed({"rich": rich, "poor": Project((1, 1, 1), 1.0, 9)})
    taken: list[str] = []
    while queue.ready:
        taken += queue.take(99, lambda: shares)
    assert taken == ["rich/old", "rich/now", "rich/dear", "poor/cheap", "rich/cheap"]


def test_shares_are_not_asked_for_where_one_project_alone_waits() -> None:
    queue = Queue()

    def fail() -> Supposed:
        raise AssertionError("shares were asked for")

    for number in range(300):
        queue.offer(f"v{number:03}", QueuePosition(float(number % 3), f"p{number % 3}", float(number)))
    taken = [key for _ in range(4) for key in queue.take(99, fail)]
    assert len(taken) == 300 and not queue.ready and not queue.contended


def test_of_more_leases_than_are_tried_at_once_each_project_has_as_many() -> None:
    many = [(QueuePosition(0.0, "many", float(n)), f"many/{n}") for n in range(1000)]
    few = [(QueuePosition(0.0, "few", 5000.0 + n), f"few/{n}") for n in range(40)]
    dear = [(QueuePosition(3.0, "many", 9000.0), "dear")]
    first = mix([*many, *few, *dear], 61)
    assert first[0] == "dear" and sum(key.startswith("few/") for key in first) == 30
