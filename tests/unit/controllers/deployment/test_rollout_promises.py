"""Whatever happens, in whatever order: never fewer healthy instances than promised by the plan's own doing, no name twice, and each
rollout ends with a verdict."""

from __future__ import annotations

import random

import pytest
from tests.long import mark_seeds
from tests.unit.controllers.deployment.rollout_world import Manner, World

from weft.controllers.deployment.facts import Verdict
from weft.kinds.fields.deployment.strategy import RolloutStrategy

ENDED = ("Promoted", "RolledBack", "Undecided")
STRATEGIES = ("rolling", "blue-green", "canary")
MANNERS: tuple[Manner, ...] = ("good", "good", "never", "crashes", "late")


def make_world(chance: random.Random) -> World:
    replicas = chance.randint(1, 5)
    surge, missing = chance.choice([(0, 1), (1, 0), (1, 1), (2, 2)])
    world = World(
        replicas,
        capacity=chance.choice([1000, replicas, replicas + 1]),
        drain=chance.choice([0.0, 6.0]),
        max_surge=surge,
        max_unavailable=missing,
        rollback_on_failure=chance.random() < 0.6,
        monitor_duration=20.0,
        auto_promote=chance.random() < 0.7,
        keep_old=10.0,
        on_undecided=chance.choice(["hold", "promote", "revert"]),
        canary_steps=[0.05, 0.5],
    )
    world.boot_seconds = chance.choice([0.0, 3.0])
    return world


def act(world: World, chance: random.Random) -> None:
    """One thing that people, nodes or requests do."""
    guests = [one for one in world.guests.values() if one.deleting_since is None]
    match chance.randrange(14):
        case 0 | 1:
            world.update(f"shop:{chance.randint(1, 4)}", type=chance.choice(STRATEGIES))
        case 2:
            world.change(paused=True)
        case 3 | 4:
            world.resume()
        case 5:
            world.change(replicas=chance.randint(0, 5))
        case 6 if guests:
            chance.choice(guests).failed = True
        case 7 if guests:
            chance.choice(guests).lost_since = world.now
        case 8:
            for one in guests:
                one.lost_since = None
        case 9 if guests:
            del world.guests[chance.choice(guests).name]
        case 10:
            world.now += chance.choice([-3600.0, 3600.0])
        case 11:
            world.verdict = chance.choice(
                [Verdict("bad", "5 % fail"), Verdict("good", "all well"), Verdict("wait", "")]
            )
            world.judged = world.verdict.word != "wait"
        case 12:
            world.silent = {one.name for one in guests if chance.random() < 0.5}
        case 13:
            world.departs = not world.departs


@pytest.mark.parametrize("seed", mark_seeds(60))
def test_random_events_break_no_promise(seed: int) -> None:
    chance = random.Random(seed)
    world = make_world(chance)
    world.manners = {number: chance.choice(MANNERS) for number in range(2, 6)}
    for _ in range(60):
        if chance.random() < 0.3:
            act(world, chance)
        if chance.random() < 0.2:
            world.plan(written=False)
        world.pass_time(chance.choice([1, 1, 3]))
    world.manners = {}
    for one in world.guests.values():
        one.lost_since, one.failed = None, False
    world.verdict, world.capacity = Verdict("wait", ""), 1000
    world.silent, world.departs = set(), True
    world.change(paused=False, replicas=3, strategy=RolloutStrategy(health_check_timeout=30.0, monitor_duration=20.0))
    world.pass_time(100)
    assert world.status.phase in (*ENDED, "Paused")
    assert len(world.serving()) >= 3
    if world.status.phase == "Paused":
        world.resume()
        world.until(*ENDED)
    world.update("shop:9", type="rolling")
    world.until(*ENDED)
    if world.status.phase == "RolledBack" or world.status.revision != max(one.number for one in world.status.revisions):
        world.pass_time(30)
        world.update("shop:9", type="rolling")
    world.until("Promoted")
    world.pass_time(40)
    assert world.status.split == []
    assert [one.revision for one in world.serving()] == [world.status.revision] * 3
    assert all(one.deleting_since is not None for one in world.guests.values() if one not in world.serving())
