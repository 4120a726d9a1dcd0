"""Keys go through the steps in an order in which no server ever meets what it can't open, whatever each has seen so far."""

from __future__ import annotations

import itertools

import pytest

from weft.api.rotation.steps import ORPHANED_SECONDS, add_keys, advance, arrange_keys, is_orphaned, list_waiting
from weft.protocol.server.presence import Presence
from weft.protocol.server.rotation import Rotation
from weft.trust.seal import MOST_KEYS, name_key

OLD, NEW, ELDER = b"o" * 32, b"n" * 32, b"e" * 32
LATER = ORPHANED_SECONDS + 1
ROTATION = Rotation(key=name_key(NEW), former=name_key(OLD))


def at(step: str) -> Rotation:
    rotation = ROTATION
    while rotation.step != step:
        rotation = advance(rotation, 7.0)
    return rotation


def presence(*keys: bytes) -> Presence:
    return Presence("u", seal_keys=[name_key(key) for key in keys], release="0.1.0")


@pytest.mark.parametrize(
    ("step", "keys", "arranged"),
    [
        ("spread", [OLD, NEW], [OLD, NEW]),
        ("spread", [OLD], [OLD]),
        ("switch", [OLD, NEW], [NEW, OLD]),
        ("switch", [NEW, OLD], [NEW, OLD]),
        ("switch", [OLD], [OLD]),
        ("reseal", [OLD, ELDER, NEW], [NEW, OLD, ELDER]),
        ("drop", [NEW, OLD, ELDER], [NEW]),
        ("drop", [OLD], [OLD]),
        ("done", [OLD, NEW], [NEW]),
        ("done", [NEW], [NEW]),
    ],
)
def test_a_servers_keys_follow_the_step(step: str, keys: list[bytes], arranged: list[bytes]) -> None:
    assert arrange_keys(keys, at(step)) == arranged
    assert arrange_keys(arranged, at(step)) == arranged


def test_a_step_waits_for_each_server_and_says_why() -> None:
    present = {"s1": presence(OLD, NEW), "s2": presence(OLD), "s4": Presence("u", release="0.0.9")}
    assert list_waiting(at("spread"), ["s1", "s2", "s3"], present) == {
        "s2": "it doesn't have the new key yet",
        "s3": "it doesn't answer",
        "s4": "it runs weft 0.0.9, which has no rotation",
    }
    assert list_waiting(at("spread"), ["s1"], {"s1": presence(OLD, NEW)}) == {}
    assert list_waiting(at("switch"), ["s1"], {"s1": presence(OLD, NEW)}) == {"s1": "it seals with the former key yet"}
    assert list_waiting(at("switch"), ["s1"], {"s1": presence(NEW, OLD)}) == {}
    assert list_waiting(at("drop"), ["s1"], {"s1": presence(NEW, OLD)}) == {"s1": "it has the former key yet"}
    assert list_waiting(at("drop"), ["s1"], {"s1": presence(NEW)}) == {}
    assert list_waiting(at("done"), ["s1"], {}) == {} == list_waiting(at("reseal"), ["s1"], {})


def test_in_no_order_of_turns_does_a_server_seal_what_another_one_cannot_open() -> None:
    """Three servers take their turns in every order of nine; those that say what they have are believed only late."""
    for order in itertools.product(range(3), repeat=9):
        keys = [[OLD, NEW], [OLD], [OLD]]
        said = [presence(*one) for one in keys]
        rotation = ROTATION
        for who in order:
            if NEW not in keys[who]:
                keys[who] = add_keys(keys[who], [NEW])
            keys[who] = arrange_keys(keys[who], rotation)
            assert all(one[0] in other for one in keys for other in keys), (order, rotation.step)
            names = {f"s{number}": one for number, one in enumerate(said)}
            if rotation.step != "done" and not list_waiting(rotation, list(names), names):
                rotation = advance(rotation, 1.0)
            said[who] = presence(*keys[who])


def test_a_rotation_ends_with_its_time() -> None:
    done = at("done")
    assert (done.step, done.finished_at, done.changed_at) == ("done", 7.0, 7.0)
    assert at("drop").finished_at is None


def test_a_rotation_whose_key_nobody_has_may_begin_anew_and_no_other() -> None:
    alone = {"s1": presence(OLD)}
    assert is_orphaned(ROTATION, ["s1"], alone, LATER)
    assert not is_orphaned(ROTATION, ["s1"], alone, ORPHANED_SECONDS)  # its lease may be older
    assert not is_orphaned(ROTATION, ["s1", "s2"], alone, LATER)  # the other one may have it
    assert not is_orphaned(ROTATION, ["s1"], {"s1": presence(OLD, NEW)}, LATER)
    assert not is_orphaned(at("switch"), ["s1"], alone, LATER)


def test_keys_are_added_once_and_no_more_than_a_file_takes() -> None:
    assert add_keys([OLD], [NEW, OLD, NEW]) == [OLD, NEW]
    found = [OLD]
    for number in range(20):  # a server that dies again and again before it has begun
        fresh = bytes([number]) * 32
        found = add_keys(found, [fresh])
        assert found[0] == OLD and found[-1] == fresh and len(found) <= MOST_KEYS
