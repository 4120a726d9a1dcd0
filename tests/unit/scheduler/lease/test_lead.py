"""How long before its start a reservation is booted: by what starts of its image took."""

from __future__ import annotations

import msgspec

from weft.contracts.policy import Datum, Request
from weft.kinds.allocation import AllocatedImage, AllocationReport, AllocationSpec, Resources, Step
from weft.objects.identity import Ref
from weft.scheduler.lease.lead import LONGEST_SECONDS, MOST_IMAGES, SHORTEST_SECONDS, Leads


def spec(digest: str = "aa") -> AllocationSpec:
    return AllocationSpec(
        node="n1",
        node_uid="u1",
        workload=Ref("vm", "web", "w", "default"),
        workload_generation=1,
        incarnation=1,
        resources=Resources(),
        image=AllocatedImage(name="tiny", uid="i", sha256=digest, size=1, url="u"),
    )


def report(boot: float, state: str = "done", image: float = 0.0) -> AllocationReport:
    steps = [
        Step(name="image", state="done", seconds=image),
        Step(name="disk", state="done", seconds=10.0),
        Step(name="boot", state=state, seconds=boot),  # type: ignore[arg-type]
    ]
    return AllocationReport(steps=steps)


REQUEST = Request(amounts=(1, 1, 1), machine="q35", strategy="x", data=(Datum("image:aa", 1), Datum("image:bb", 1)))


def test_the_longest_start_of_its_image_counts_with_something_over() -> None:
    leads = Leads()
    assert leads.find(REQUEST) == SHORTEST_SECONDS
    leads.note(spec(), report(20.0))
    assert leads.find(REQUEST) == SHORTEST_SECONDS  # 1.5 × 30 + 15
    leads.note(spec(), report(90.0, image=1000.0))  # images are fetched ahead
    leads.note(spec(), report(50.0))
    leads.note(spec(), report(400.0, state="doing"))
    leads.note(spec("bb"), report(400.0))
    assert leads.find(REQUEST) == 1.5 * 100 + 15
    leads.note(spec(), report(10_000.0))
    assert leads.find(REQUEST) == LONGEST_SECONDS
    assert leads.find(msgspec.structs.replace(REQUEST, machine="")) == SHORTEST_SECONDS
    assert leads.find(msgspec.structs.replace(REQUEST, data=())) == SHORTEST_SECONDS


def test_images_that_started_long_ago_are_forgotten() -> None:
    leads = Leads()
    leads.note(spec("old"), report(100.0))
    leads.note(spec(), report(100.0))
    for number in range(MOST_IMAGES - 1):
        leads.note(spec(str(number)), report(1.0))
    assert leads.find(REQUEST) == 1.5 * 110 + 15
    assert leads.find(msgspec.structs.replace(REQUEST, data=(Datum("image:old", 1),))) == SHORTEST_SECONDS
