"""How long before its start a reservation takes its capacity, to answer on the second: by what starts of its image took."""

from __future__ import annotations

from weft.contracts.policy import Request
from weft.kinds.allocation import AllocationReport, AllocationSpec

SHORTEST_SECONDS = 60.0
LONGEST_SECONDS = 900.0
FACTOR, MORE_SECONDS = 1.5, 15.0  # of the longest start
MOST_IMAGES = 1000
_IMAGE = "image:"  # before its digest, among a request's data


class Leads:
    """``note`` every report; the longest start of each image counts, of the images that started last."""

    def __init__(self) -> None:
        self._longest: dict[str, float] = {}  # seconds by digest

    def note(self, spec: AllocationSpec, report: AllocationReport) -> None:
        if spec.image is None or not report.steps or any(step.state != "done" for step in report.steps):
            return
        seconds = sum(step.seconds for step in report.steps if step.name != "image")  # that is fetched ahead
        longest = max(seconds, self._longest.pop(spec.image.sha256, 0.0))
        self._longest[spec.image.sha256] = longest
        if len(self._longest) > MOST_IMAGES:
            del self._longest[next(iter(self._longest))]

    def find(self, request: Request) -> float:
        """Seconds before the start. What isn't a machine is made but for its start, which takes no time."""
        images = [datum.name.removeprefix(_IMAGE) for datum in request.data if datum.name.startswith(_IMAGE)]
        if not request.machine or not images:
            return SHORTEST_SECONDS
        longest = self._longest.get(images[0], 0.0)  # its own is the first
        return min(LONGEST_SECONDS, max(SHORTEST_SECONDS, FACTOR * longest + MORE_SECONDS))
