"""Specs that are right but for one value, and what the API says of each: every field that a kind has, with what people, programs
and attackers put into fields."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
from tests.scenario.api_lab import ApiLab

from weft.contracts.store import Delete
from weft.kinds.container import ContainerSpec
from weft.kinds.conversion import ConversionSpec
from weft.kinds.function import FunctionSpec
from weft.kinds.job import JobSpec
from weft.objects.identity import object_key

SPECS: dict[str, type[msgspec.Struct]] = {
    "container": ContainerSpec,
    "function": FunctionSpec,
    "job": JobSpec,
    "conversion": ConversionSpec,
}
RIGHT: dict[str, dict[str, Any]] = {
    "container": {"image": "r.example.org/shop/web:1", "memory": 64 << 20},
    "function": {"image": "r.example.org/shop/own:1", "memory": 128 << 20},
    "job": {"task": {"image": "r.example.org/shop/tool:1"}, "array": "0-3"},
    "conversion": {"workload": "container/web", "to": "vm"},
}
# Where two fields contradict each other, the other one may be named.
BLAMED = {"gpu_memory": "gpus", "gpu_models": "gpus", "image": "code", "workload": "to"}
SAYS_WHAT_IS_RIGHT = re.compile(
    r"none of |expected |set of fields|is missing|can't have|the same thing twice|2 to 32 members|at most \d"
)
LONG, LONGEST_ANSWER = 70_000, 5000
TEXTS = [
    "", " ", "-", "a", "A", "x" * 300, "x" * LONG, "\0", "a\nb", "\x1b[31m", "ünï", "٣", "$(id)", "'", "\u202e",
    "-1", "0", "1e999", "NaN", "true", "null", "../../etc/passwd", "/", "data:/data", "data:/data/../../etc", "data:data",
    "none:/x", "data:/proc", "data:/dev", "8080:80", "99999:80", "80:80:80", "0:0", "a=b", "memory>=", "(" * 2000,
    "memory>=1GB and " * 500 + "cpu>1", "@none", "none:3", "default:10.0.0.1", "0-99999999", "5-1", "* * * * *",
    "61 * * * *", "vm/none", "container/web", "r.example.org/a@sha256:" + "0" * 64, "sha256:" + "0" * 64,
]  # fmt: skip
LISTS: list[Any] = [
    [], [[]], [None], [1], ["x"] * 3000, ["data:/a", "data:/b"], ["data:/a/b", "data:/a"], ["8080:80", "8080:81"],
    [{"cron": "* * * * *"}], [{"cron": "61 * * * *"}], [{"cron": "* * * * *", "zone": "No/Where"}], [{"cron": 5}],
    *([text] for text in TEXTS),
]  # fmt: skip
MAPS: list[Any] = [
    {}, {"": ""}, {"a": None}, {"a": 1}, {"a": "b"}, {"A\n": "x"}, {"a=b": "c"}, {"A": "\0"}, {"A": "x" * LONG},
    {"A": "db/password"}, {"a": {"b": {"c": []}}}, {"x" * 300: "y"}, {f"K{n}": "v" for n in range(2000)},
    {"command": ["true"]}, {"command": []},
]  # fmt: skip
NUMBERS: list[Any] = [None, True, False, -1, 0, 1, 3, 0.5, -0.5, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**30, 1e308]
VALUES: list[Any] = [*TEXTS, *NUMBERS, *LISTS, *MAPS]


class Wrong(NamedTuple):
    """What an answer lacks, and to what."""

    kind: str
    field: str
    value: str
    fault: str


def fields_of(kind: str) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(SPECS[kind])]


def all_draws() -> list[tuple[str, str, Any]]:
    """(kind, field, value): each field with each value."""
    return [(kind, field, value) for kind in SPECS for field in fields_of(kind) for value in VALUES]


class Asker:
    """Asks ``lab`` for objects with one strange value, and says which answers are wrong."""

    def __init__(self, lab: ApiLab) -> None:
        self.lab = lab
        self.accepted: list[dict[str, Any]] = []
        self.refused = 0
        lab.client.create({"kind": "volume", "name": "data", "spec": {"size": 1 << 30}})
        for kind, name in (("container", "web"), ("container", "even"), ("function", "even"), ("job", "even")):
            lab.client.create({"kind": kind, "name": name, "spec": RIGHT[kind]})

    def create(self, kind: str, field: str, value: Any) -> Iterator[Wrong]:
        spec = copy.deepcopy(RIGHT[kind]) | {field: value}
        before = self.lab.revision()
        answer = self.lab.client.http.request(
            "POST", f"/v1/projects/default/{kind}s", {"kind": kind, "name": "odd", "spec": spec}
        )
        yield from (Wrong(kind, field, repr(value)[:60], fault) for fault in self._judge(answer, field, before))
        if answer.status < 300:
            self.accepted.append(answer.json())
            self._clear(kind)

    def update(self, kind: str, field: str, value: Any) -> Iterator[Wrong]:
        """Of one that is right."""
        before = self.lab.revision()
        wish = {"kind": kind, "name": "even", "spec": RIGHT[kind] | {field: value}}
        answer = self.lab.client.http.request("PUT", f"/v1/projects/default/{kind}s/even", wish)
        yield from (Wrong(kind, f"{field} (changed)", repr(value)[:60], f) for f in self._judge(answer, field, before))

    def ask(self, draws: Iterable[tuple[str, str, Any]]) -> list[Wrong]:
        """Each as a new object and, where a kind can be changed, as a change of one that is right."""
        wrong: list[Wrong] = []
        for kind, field, value in draws:
            wrong += self.create(kind, field, value)
            if kind != "conversion":
                wrong += self.update(kind, field, value)
        return wrong

    def _judge(self, answer: Any, field: str, before: int) -> Iterator[str]:
        if answer.status < 300:
            return
        self.refused += 1
        if answer.status >= 500:
            yield f"{answer.status}: {answer.body[:300]!r}"
            return
        said = answer.json()
        if BLAMED.get(field, field) not in f"{said.get('field')} {said['detail']}" and field not in str(
            said.get("field")
        ):
            yield f"doesn't name its field: {said}"
        if not said.get("hint") and not SAYS_WHAT_IS_RIGHT.search(said["detail"]):
            yield f"has no remedy: {said['detail'][:200]}"
        if self.lab.revision() != before and (written := self._written_since(before)):
            yield f"{written} were written: {said}"
        if len(answer.body) > LONGEST_ANSWER:
            yield f"{len(answer.body)} bytes of error"

    def _written_since(self, revision: int) -> list[str]:
        """Keys; but for tokens, which say when they were used last."""
        entries = self.lab.run(self.lab.store.list("")).entries
        return [e.key for e in entries if e.revision > revision and not e.key.startswith("/token/")]

    def _clear(self, kind: str) -> None:
        self.lab.client.http.request("DELETE", f"/v1/projects/default/{kind}s/odd")
        # Finalizers are the controllers', who aren't here.
        self.lab.run(self.lab.store.commit([Delete(object_key(kind, "default", "odd"))]))
