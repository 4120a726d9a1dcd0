"""Which instance serves, starts and goes: the pool alone, and over many random lives."""

from __future__ import annotations

import random

from weft.agent.function.pool import FreeCapacity, Lack, Need, Pool, measure_capacity

MIB = 1 << 20
NEED = Need(1.0, 100 * MIB)


def begin(pool: Pool, id: str, digest: str = "f", now: float = 0.0, *, spoken_for: bool = False) -> list[str]:
    gone = pool.begin(id, digest, NEED, now, spoken_for=spoken_for)
    assert not isinstance(gone, Lack), gone
    return gone


def idle(pool: Pool, id: str, digest: str = "f", now: float = 0.0) -> None:
    begin(pool, id, digest, now)
    pool.free(id, now)


def test_the_instance_used_last_serves_first_and_one_asleep_only_when_no_other_does() -> None:
    pool = Pool(FreeCapacity(8.0, 1000 * MIB))
    idle(pool, "a", now=1.0)
    idle(pool, "b", now=2.0)
    idle(pool, "c", now=3.0)
    pool.members["c"].paused = True
    assert [pool.take("f", 4.0).id for _ in range(3)] == ["b", "a", "c"]  # type: ignore[union-attr]
    assert pool.take("f", 4.0) is None and pool.take("g", 4.0) is None


def test_one_that_comes_up_for_nobody_is_spoken_for_once() -> None:
    pool = Pool(FreeCapacity(8.0, 1000 * MIB))
    begin(pool, "a")
    taken = pool.take("f", 1.0)
    assert taken is not None and (taken.id, taken.state) == ("a", "starting")
    assert pool.take("f", 1.0) is None


def test_memory_is_hard_and_idle_ones_go_the_longest_unused_first() -> None:
    pool = Pool(FreeCapacity(80.0, 300 * MIB))
    for number in range(3):
        idle(pool, f"i{number}", "old", float(number))
    assert begin(pool, "n", "new", 9.0, spoken_for=True) == ["i0"]
    assert begin(pool, "m", "new", 9.0, spoken_for=True) == ["i1"]
    assert begin(pool, "k", "new", 9.0, spoken_for=True) == ["i2"]
    lack = pool.begin("x", "new", NEED, 9.0, spoken_for=True)
    assert isinstance(lack, Lack) and lack.message == "100 MiB of memory are needed, 0 of 300 for functions are free"


def test_cpu_is_counted_for_instances_at_work_only() -> None:
    pool = Pool(FreeCapacity(2.0, 10_000 * MIB))
    idle(pool, "a")
    idle(pool, "b")
    begin(pool, "c", spoken_for=True)
    begin(pool, "d", spoken_for=True)
    lack = pool.begin("e", "f", NEED, 0.0, spoken_for=True)
    assert isinstance(lack, Lack) and "1 CPUs are needed, 0 of 2" in lack.message


def test_an_allocation_takes_idle_ones_first_then_the_youngest_at_work() -> None:
    pool = Pool(FreeCapacity(8.0, 400 * MIB))
    idle(pool, "idle", now=5.0)
    for number in range(3):
        begin(pool, f"b{number}", now=float(number), spoken_for=True)
        pool.serve(f"b{number}", float(number))
    assert pool.shrink(FreeCapacity(8.0, 300 * MIB)) == ["idle"]
    assert pool.shrink(FreeCapacity(8.0, 150 * MIB)) == ["b2", "b1"]
    assert pool.shrink(FreeCapacity(8.0, 0)) == ["b0"] and pool.members == {}


def test_idle_time_and_those_that_stand_ready() -> None:
    pool = Pool(FreeCapacity(8.0, 1000 * MIB))
    pool.keep("f", 10.0, 1)
    idle(pool, "a", now=0.0)
    idle(pool, "b", now=5.0)
    assert pool.pause(5.05) == ["a"] and pool.expire(9.0) == []
    assert pool.expire(30.0) == ["a"] and list(pool.members) == ["b"]
    assert pool.lacking_ready("f") == 0
    pool.keep("f", 10.0, 3)
    assert pool.lacking_ready("f") == 2
    pool.keep("f", 0.0, 0)
    assert pool.expire(30.0) == ["b"]


def test_when_to_look_again() -> None:
    pool = Pool(FreeCapacity(8.0, 1000 * MIB))
    assert pool.next_review(0.0) is None
    pool.keep("f", 10.0, 0)
    idle(pool, "a", now=1.0)
    assert abs((pool.next_review(1.0) or 0) - 0.1) < 1e-9
    pool.pause(1.2)
    assert abs((pool.next_review(1.2) or 0) - 9.8) < 1e-9


def test_room_is_what_allocations_leave() -> None:
    assert measure_capacity(2.0, 1000, 1.0, 300) == FreeCapacity(7.0, 700)
    assert measure_capacity(2.0, 1000, 20.0, 1300) == FreeCapacity(0.0, 0)


def test_whatever_happens_no_more_memory_is_given_than_there_is() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        pool, now, made = Pool(FreeCapacity(6.0, 500 * MIB)), 0.0, 0
        busy: set[str] = set()
        for _ in range(300):
            now += chance.random()
            digest = chance.choice("fgh")
            what = chance.randrange(8)
            if what <= 2:
                member = pool.take(digest, now)
                if member is None:
                    made += 1
                    gone = pool.begin(f"{made}", digest, NEED, now, spoken_for=True)
                    if not isinstance(gone, Lack):
                        busy.add(f"{made}")
                        assert not busy & set(gone), (seed, gone)
                else:
                    assert member.id not in busy, seed
                    busy.add(member.id)
            elif what <= 4 and busy:
                id = chance.choice(sorted(busy))
                busy.discard(id)
                pool.free(id, now)
            elif what == 5 and pool.members:
                id = chance.choice(sorted(pool.members))
                pool.forget(id)
                busy.discard(id)
            elif what == 6:
                busy -= set(pool.shrink(FreeCapacity(6.0, chance.randrange(2, 8) * 100 * MIB)))
            else:
                pool.keep(digest, chance.random() * 5, chance.randrange(3))
                assert not busy & set(pool.expire(now)), seed
                pool.pause(now)
            assert sum(one.need.memory for one in pool.members.values()) <= pool.capacity.memory, seed
            assert busy <= set(pool.members) and {m.id for m in pool.members.values() if m.spoken_for} == busy, seed
