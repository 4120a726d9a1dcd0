"""Settings in waves over 1,000 pretended devices, 5 % of which fail, in virtual time."""

from __future__ import annotations

import msgspec

from weft.contracts.store import MAX_VALUE_BYTES
from weft.controllers.device.rollout_plan import (
    MOST_REASONS,
    RolloutProgress,
    Stand,
    Waves,
    begin,
    find_rollout_obstacle,
    plan_rollout,
)


class Site:
    """Devices that take a value 2 s after it was set; each twentieth refuses, or says nothing."""

    def __init__(self, count: int) -> None:
        self.names = [f"d{n:04}" for n in range(count)]
        self.bad = set(self.names[7::20])
        self.now, self.set_at = 1000.0, dict[str, float]()

    def stands(self) -> dict[str, Stand]:
        return {name: self._stand(name) for name in self.names}

    def _stand(self, name: str) -> Stand:
        passed = name in self.set_at and self.now - self.set_at[name] >= 2
        if name not in self.bad:
            return Stand(passed)
        return Stand(False, "refused: out of range" if passed and int(name[1:]) % 40 == 7 else "")

    def run(self, waves: Waves, progress: RolloutProgress, *, most: int = 100_000) -> RolloutProgress:
        """Until it stops or is done; what a commit writes is all that is kept between two steps."""
        for _ in range(most):
            step = plan_rollout(waves, progress, self.stands(), self.now)
            assert len(step.to_set) <= 90
            for name in step.to_set:
                assert name not in self.set_at, "set twice"
                self.set_at[name] = self.now
            progress = msgspec.json.decode(msgspec.json.encode(step.progress), type=RolloutProgress)
            if step.later is None:
                return progress
            self.now += min(step.later, 1.0)
        return progress


def test_it_stops_within_the_wave_in_which_one_failure_too_many_comes() -> None:
    site = Site(1000)
    progress = site.run(Waves(max_failures=12), begin(site.names))
    assert progress.phase == "Stopped"
    assert progress.through == len(site.set_at) == 300
    assert progress.states.count("f") == len(progress.failures) == 15
    assert progress.states.count("c") == 285
    assert progress.states.count(".") == 700
    assert set(progress.failures) == {name for name in site.bad if name in site.set_at}


def test_it_goes_on_where_it_stopped_and_ends_with_the_state_of_each_device_known() -> None:
    site = Site(1000)
    progress = site.run(Waves(max_failures=12), begin(site.names))
    resumed = 0
    while progress.phase == "Stopped":
        resumed += 1
        progress = site.run(Waves(max_failures=12, resumed=resumed), progress)
    assert (progress.phase, resumed) == ("Done", 3)
    assert len(site.set_at) == 1000
    assert (progress.states.count("c"), progress.states.count("f")) == (950, 50)


def test_a_kill_at_any_step_sets_no_device_twice() -> None:
    site = Site(100)
    progress = begin(site.names)
    while progress.phase != "Done":
        progress = site.run(Waves(max_failures=5), progress, most=1)  # each step by a new process
    assert len(site.set_at) == 100


def test_a_member_that_is_gone_has_failed_and_later_ones_are_none() -> None:
    progress = plan_rollout(Waves(percent=100), begin(["a", "b"]), {}, 10.0).progress
    after = plan_rollout(Waves(), progress, {"a": Stand(True), "c": Stand(False)}, 11.0).progress
    assert (after.states, after.failures) == ("cf", {"b": "it is gone"})


def test_a_rollout_that_fails_on_all_of_many_devices_stays_one_that_the_store_takes() -> None:
    names = [f"cold-store-in-the-north-{n:039}" for n in range(2200)]
    assert find_rollout_obstacle(names) == ""
    waves = Waves(percent=100, max_failures=5000)
    progress, now = begin(names), 1000.0
    refuse = {name: Stand(False, "Refused: " + "x" * 500) for name in names}
    while progress.phase != "Done":
        step = plan_rollout(waves, progress, refuse, now)
        progress, now = step.progress, now + (step.later or 0)
        assert len(msgspec.json.encode(progress)) < MAX_VALUE_BYTES * 3 // 4
    assert progress.states == "f" * len(progress.members)
    assert len(progress.members) > 2000
    assert len(progress.failures) == MOST_REASONS


def test_the_failures_whose_reason_is_not_kept_stop_it_too() -> None:
    names = [f"d{n:04}" for n in range(1000)]
    waves, progress, now = Waves(percent=1, max_failures=300), begin(names), 1000.0
    while progress.phase == "Progressing":
        step = plan_rollout(waves, progress, dict.fromkeys(names, Stand(False, "no")), now)
        progress, now = step.progress, now + (step.later or 0)
    assert (progress.phase, progress.states.count("f")) == ("Stopped", 310)


def test_a_step_sets_no_more_devices_than_one_commit_can() -> None:
    step = plan_rollout(Waves(percent=100, together=7), begin([f"d{n}" for n in range(50)]), {}, 1.0)
    assert len(step.to_set) == 7


def test_a_selection_that_is_empty_or_too_large_bars_the_rollout_with_the_count_and_the_remedy() -> None:
    assert "selects no device" in find_rollout_obstacle([])
    assert find_rollout_obstacle([f"d{n}" for n in range(5000)]) == ""
    for names in ([f"d{n}" for n in range(5001)], [f"cold-store-{n:050}" for n in range(3000)]):
        assert f"it selects {len(names)} devices" in find_rollout_obstacle(names)
        assert "labels" in find_rollout_obstacle(names)


def test_a_device_that_is_not_heard_fails_with_its_phase() -> None:
    progress = plan_rollout(Waves(), begin(["a"]), {}, 10.0).progress
    after = plan_rollout(Waves(timeout_seconds=5), progress, {"a": Stand(False, phase="Offline")}, 16.0).progress
    assert after.failures == {"a": "no answer within 5 s: it is Offline"}
