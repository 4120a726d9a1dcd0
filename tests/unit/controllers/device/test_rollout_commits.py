"""What a device rollout writes, with devices as large as they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import pytest

from weft.controllers.device.rollout import DeviceRollouts
from weft.informer.view import Item, View
from weft.kinds.device import DEVICE, DeviceReport, DeviceSpec, DeviceStatus
from weft.kinds.device_model import DEVICE_MODEL, DeviceModelSpec
from weft.kinds.device_rollout import DEVICE_ROLLOUT, DeviceRolloutSpec, DeviceRolloutStatus
from weft.kinds.fields.device.affordance import Property, Value
from weft.kinds.record import Index, Kind
from weft.objects.envelope import decode_envelope, encode_envelope
from weft.store.limits import check_commit

NAMES = [f"p{n}" for n in range(15)]
MODEL = DeviceModelSpec(properties={name: Property(type="string") for name in NAMES})


class Shown(View):
    """Objects as if they were in the store."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = {item.key: item for item in items}

    def get(self, key: str) -> Item | None:
        return self.items.get(key)

    def find(self, index: Index, word: str) -> list[Item]:
        return [item for item in self.items.values() if item.envelope.kind == DEVICE.name]

    def of_kind(self, kind: str) -> Mapping[str, Item]:
        return {key: item for key, item in self.items.items() if item.envelope.kind == kind}


def make(kind: Kind, name: str, spec: msgspec.Struct, report: DeviceReport | None = None, at: float = 1.0) -> Item:
    made = kind.make(name, spec, at, project="shop", creator="", report=report)
    return Item(decode_envelope(encode_envelope(made), 1))


def test_a_wave_over_the_largest_devices_is_written_in_commits_that_the_store_takes() -> None:
    report = DeviceReport(phase="Online", reported={f"q{n}": "x" * 1000 for n in range(15)})
    spec = DeviceSpec(node="n1", model="fridge")
    devices = [make(DEVICE, f"d{n}", spec, report) for n in range(200)]
    values: dict[str, Value] = dict.fromkeys(NAMES, "y" * 1000)
    rollout = make(DEVICE_ROLLOUT, "summer", DeviceRolloutSpec(model="fridge", set=values, percent=100))
    view = Shown([make(DEVICE_MODEL, "fridge", MODEL), rollout, *devices])
    (commit,) = DeviceRollouts().plan(view, [rollout.key], 10.0).commits
    check_commit(commit.writes, commit.preconditions)
    assert len(commit.writes) > 10


def test_a_rollout_whose_model_is_gone_says_so_and_goes_on_when_it_is_back() -> None:
    rollout = make(DEVICE_ROLLOUT, "summer", DeviceRolloutSpec(model="fridge", set={"p1": "y"}, percent=100))
    device = make(DEVICE, "d1", DeviceSpec(node="n1", model="fridge"))
    (commit,) = DeviceRollouts().plan(Shown([rollout, device]), [rollout.key], 10.0).commits
    stopped = Item(decode_envelope(commit.writes[0].value, 2))  # type: ignore[union-attr]
    assert "device model fridge isn't there" in stopped.status(DeviceRolloutStatus).problem
    assert not DeviceRollouts().plan(Shown([stopped, device]), [rollout.key], 11.0).commits
    view = Shown([stopped, device, make(DEVICE_MODEL, "fridge", MODEL)])
    (again,) = DeviceRollouts().plan(view, [rollout.key], 12.0).commits
    gone_on = Item(decode_envelope(again.writes[0].value, 3)).status(DeviceRolloutStatus)  # type: ignore[union-attr]
    assert (gone_on.phase, gone_on.problem, gone_on.states) == ("Progressing", "", "s")


def plan(now: float, *items: Item) -> Item | None:
    """The rollout, the first of the items, as the next commit has it; None: there is none."""
    commits = DeviceRollouts().plan(Shown([make(DEVICE_MODEL, "fridge", MODEL), *items]), [items[0].key], now).commits
    return Item(decode_envelope(commits[0].writes[0].value, 2)) if commits else None  # type: ignore[union-attr]


def roll_out() -> Item:
    return make(DEVICE_ROLLOUT, "summer", DeviceRolloutSpec(model="fridge", set={"p1": "y"}, percent=100))


def test_a_rollout_before_its_devices_waits_and_takes_all_that_come_together() -> None:
    waits = plan(10.0, roll_out())
    assert waits is not None
    assert waits.status(DeviceRolloutStatus).phase == "Pending"
    assert "selects no device" in waits.status(DeviceRolloutStatus).problem
    assert plan(11.0, waits) is None
    spec = DeviceSpec(node="n1", model="fridge")
    devices = [make(DEVICE, f"d{n}", spec, at=20.0 + n) for n in range(3)]
    assert plan(20.1, waits, devices[0]) is None
    begun = plan(33.0, waits, *devices)
    assert begun is not None
    assert (begun.status(DeviceRolloutStatus).states, begun.status(DeviceRolloutStatus).problem) == ("sss", "")


def test_a_rollout_over_more_devices_than_it_takes_sets_none_and_says_how_many_there_are() -> None:
    devices = [make(DEVICE, f"d{n}", DeviceSpec(node="n1", model="fridge")) for n in range(5001)]
    refused = plan(10.0, roll_out(), *devices)
    assert refused is not None
    assert refused.status(DeviceRolloutStatus).states == ""
    assert "5001 devices" in refused.status(DeviceRolloutStatus).problem


@pytest.mark.parametrize(
    ("phase", "seen_at", "told", "state"),
    [
        ("Online", 5.0, "Online", "c"),
        ("Stale", 11.0, "Stale", "c"),
        ("Stale", 9.0, "Stale", "s"),
        ("Offline", 11.0, "Offline", "s"),
        ("Online", 11.0, "Unknown", "s"),
    ],
)
def test_only_a_device_that_is_heard_confirms_a_value(phase: str, seen_at: float, told: str, state: str) -> None:
    """``told``: its status, which is Unknown where its gateway is silent."""
    report = DeviceReport(phase=phase, seen_at=seen_at, reported={"p1": "y"})
    device = make(DEVICE, "d1", DeviceSpec(node="n1", model="fridge"), report)
    device.envelope.status = msgspec.Raw(msgspec.json.encode(DeviceStatus(phase=told)))
    sent = plan(10.0, roll_out(), device)
    assert sent is not None
    after = plan(12.0, sent, device) or sent
    assert after.status(DeviceRolloutStatus).states == state
