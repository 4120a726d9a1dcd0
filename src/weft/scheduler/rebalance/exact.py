"""The best steps one after the other, exactly: guests of one shape are one type, and all (type, source, target) are compared by
closed form. Then, while time is left, each step is taken back and the best one put in its place. For few types, without traffic.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from weft.scheduler.rebalance.model import Budget, MigrationStep, Problem, State, Whole

LEAST_GAIN = 1e-9


class _Search:
    def __init__(self, problem: Problem) -> None:
        self.state = State(problem)
        keys = np.column_stack([problem.load, problem.need, problem.price, problem.size])
        _, self._type_of = np.unique(keys, axis=0, return_inverse=True)
        self._waiting: list[
            dict[int, list[int]]
        ] = []  # by type and node, guests that have not migrated; the first one last
        for type_ in range(int(self._type_of.max(initial=-1)) + 1):
            by_node: dict[int, list[int]] = {}
            for guest in reversed(np.flatnonzero((self._type_of == type_) & problem.mobile).tolist()):
                by_node.setdefault(int(problem.at[guest]), []).append(guest)
            self._waiting.append(by_node)
        self.size = 0.0

    def find(self, most_size: float) -> tuple[int, int] | None:
        """The guest and target of the best step; None if none gains anything."""
        state, problem, best = self.state, self.state.problem, (LEAST_GAIN, -1, -1, -1)
        now = state.score()
        still = float(problem.penalty[state.at].sum())
        for type_, by_node in enumerate(self._waiting):
            sources: Whole = np.array([node for node, guests in by_node.items() if guests], dtype=np.int64)
            if not sources.size:
                continue
            guest = by_node[int(sources[0])][-1]
            if self.size + problem.size[guest] > most_size:
                continue
            scores = state.spreads(state.adds(guest), sources)
            scores += still - problem.penalty[sources][:, None] + problem.penalty[None, :]
            full = ~(problem.target & (state.free >= problem.need[guest][:, None]).all(axis=0))
            scores[:, full] = np.inf
            scores[np.arange(len(sources)), sources] = np.inf
            place = int(scores.argmin())
            row, target = divmod(place, scores.shape[1])
            gain = now - float(scores[row, target]) - float(problem.price[guest])
            if gain > best[0]:
                best = (gain, type_, int(sources[row]), target)
        _, type_, source, target = best
        return None if type_ < 0 else (self._waiting[type_][source][-1], target)

    def take(self, guest: int, target: int) -> MigrationStep:
        source = int(self.state.at[guest])
        self._waiting[self._type_of[guest]][source].remove(guest)
        self.state.apply(guest, target)
        self.size += float(self.state.problem.size[guest])
        return MigrationStep(guest, source, target, self.state.score())

    def give_back(self, step: MigrationStep) -> bool:
        """Undo a step; False, and nothing is done, if its source has no capacity any more."""
        if (self.state.free[:, step.source] < self.state.problem.need[step.guest]).any():
            return False
        self.state.apply(step.guest, step.source)
        self._waiting[self._type_of[step.guest]].setdefault(step.source, []).append(step.guest)
        self.size -= float(self.state.problem.size[step.guest])
        return True


def find_steps(problem: Problem, budget: Budget, has_time: Callable[[], bool]) -> list[MigrationStep]:
    """The steps in an order in which each fits."""
    search, steps = _Search(problem), list[MigrationStep]()
    while len(steps) < budget.steps and (found := search.find(budget.size)) is not None:
        steps.append(search.take(*found))
    return _exchange(search, steps, budget, has_time)


def _exchange(
    search: _Search, steps: list[MigrationStep], budget: Budget, has_time: Callable[[], bool]
) -> list[MigrationStep]:
    greedy, changed = steps, True
    steps = list(steps)
    while changed and has_time():
        changed = False
        for number, step in enumerate(steps):
            if not has_time():
                break
            before = search.state.score()
            if not search.give_back(step):
                continue
            found = search.find(budget.size)
            other = search.take(*found) if found is not None else search.take(step.guest, step.target)
            if other.score < before - LEAST_GAIN:
                steps[number], changed = other, True
            elif (other.guest, other.target) != (step.guest, step.target):
                search.give_back(other)
                search.take(step.guest, step.target)
    if steps == greedy:
        return greedy
    ordered = order_steps(search.state.problem, steps)
    return ordered if ordered is not None and len(ordered) == len(greedy) else greedy


def order_steps(problem: Problem, steps: list[MigrationStep]) -> list[MigrationStep] | None:
    """The same steps so that each fits when its turn comes; None if no such order was found."""
    state, left, ordered = State(problem), list(steps), list[MigrationStep]()
    while left:
        fitting = next((m for m in left if (state.free[:, m.target] >= problem.need[m.guest]).all()), None)
        if fitting is None:
            return None
        left.remove(fitting)
        state.apply(fitting.guest, fitting.target)
        ordered.append(MigrationStep(fitting.guest, fitting.source, fitting.target, state.score()))
    return ordered
