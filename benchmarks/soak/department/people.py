"""Three projects with quotas and people, and those who hold rights in them for a while."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from tests.cluster.cluster import Cluster

from benchmarks.soak.department.leases import CEILINGS, CLASSES
from benchmarks.soak.department.oracle import Turn
from benchmarks.soak.department.rights import Bearer
from weft.client import Client
from weft.client.answer import raise_problem
from weft.client.audit import read_all, verify_servers
from weft.client.context import Context, find_context
from weft.objects.errors import AlreadyExists, NotFound

# Together more than three nodes of 8 cores have.
QUOTAS: dict[str, dict[str, float]] = {
    "physics": {"cpu": 20, "memory": 2 << 30, "instances": 10},
    "biology": {"cpu": 14, "memory": 1 << 30, "instances": 8},
    "arts": {"cpu": 10, "memory": 192 << 20, "instances": 8},
}
PEOPLE = {"physics": "ann", "biology": "bea", "arts": "cem"}
PATIENCE_SECONDS = 120.0
TOKENS = 3  # at once


class People:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.context = find_context(folder=str(cluster.folder), environ={})
        self.admin = Client(self.context, patience_seconds=PATIENCE_SECONDS)
        self.clients: dict[str, Client] = {}
        self.guests: list[Bearer] = []  # people with a binding in another's project, now and then
        self.tokens: list[Bearer] = []
        self.acts, self.tally = Counter[str](), Counter[str]()
        self.problems: list[str] = []
        self._answered: dict[str, bool] = {}
        self._number, self._lock = 0, threading.Lock()

    def move_in(self) -> None:
        """Make the projects with their networks and quotas, and the people; each logs in."""
        contexts: dict[str, Context] = {}
        for name, value in CLASSES.items():
            self.admin.create({"kind": "priorityclass", "name": name, "spec": {"value": value}})
        for number, (project, limits) in enumerate(QUOTAS.items()):
            user = PEOPLE[project]
            self.admin.create({"kind": "project", "name": project, "spec": {"priority_ceiling": CEILINGS.get(project)}})
            cidr = f"10.{71 + number}.0.0/24"
            self.admin.create({"kind": "network", "name": "default", "project": project, "spec": {"cidr": cidr}})
            self.admin.create({"kind": "quota", "name": "project", "project": project, "spec": limits})
            self.admin.create({"kind": "user", "name": user, "spec": {}})
            self.admin.verb("user", user, "passwd", {"password": f"of-{user}-alone"})
            self._bind(f"{user}-{project}", user, project)
            answer = self.admin.http.request("POST", "/v1/login", {"user": user, "password": f"of-{user}-alone"})
            raise_problem(answer)
            contexts[project] = self._with_token(answer.json()["secret"])
            self.clients[project] = Client(contexts[project], project=project, patience_seconds=PATIENCE_SECONDS)
        projects = list(QUOTAS)
        for project, other in zip(projects, projects[1:] + projects[:1], strict=True):
            self.guests.append(Bearer(f"guest-{PEOPLE[project]}", contexts[project], other))

    def plan(self, draw: random.Random) -> Callable[[], str]:
        """A change of rights."""
        act = draw.choice(("binding", "binding", "token given", "token revoked"))
        if act == "binding":
            bearer = draw.choice(self.guests)
            return lambda: self._take_binding(bearer) if bearer.allowed else self._give_binding(bearer)
        living = [one for one in self.tokens if one.allowed]
        if living and (act == "token revoked" or len(living) >= TOKENS):
            bearer = draw.choice(living)
            return lambda: self._revoke(bearer)
        project = draw.choice(list(QUOTAS))
        self._number += 1
        name = f"guest-token-{self._number}"
        return lambda: self._give_token(name, project)

    def check(self) -> list[str]:
        """What was wrong so far; what guests wrote is taken away, and those whose rights are gone for a while go."""
        for project in QUOTAS:
            mine = [one for one in (*self.guests, *self.tokens) if one.project == project]
            made = {one: (set(one.made), set(one.refused)) for one in mine}  # before they are looked for
            existing = {item["name"] for item in self.admin.list("constraint", project=project).items}
            for bearer, (acknowledged, refused) in made.items():
                self.problems += bearer.find_wrong(existing, acknowledged, refused)
                bearer.problems.clear()
                bearer.made -= acknowledged
            known = set[str]().union(*(acknowledged for acknowledged, _ in made.values()))
            for name in existing & known:
                self.admin.delete("constraint", name, project=project)
        for bearer in [one for one in self.tokens if one.turns and not one.allowed]:
            if time.monotonic() > bearer.turns[-1].answered + 8.0:
                self._dismiss(bearer)
                self.tokens.remove(bearer)
        verdict = verify_servers(self.admin.http)
        if verdict.broken is not None:
            self.problems.append(f"the audit log: {verdict.broken}")
        found, self.problems = self.problems, []
        return found

    def _dismiss(self, bearer: Bearer) -> None:
        bearer.close()
        self.problems += bearer.problems
        self.tally.update(bearer.tally)
        self._answered.update(bearer.answered)

    def check_audit(self) -> list[str]:
        """Each write that was answered is in the audit log as it was answered; a refused one may be left out, when many are."""
        logged = dict[str, str]()
        for line in read_all(self.admin.http, {"kind": "constraint"}):
            record = msgspec.json.decode(line)
            if record["verb"] == "create":
                logged[record["request"]] = record["outcome"]
        wrong = [
            f"the audit log says {logged.get(request)} of {request}, which was {'allowed' if allowed else 'refused'}"
            for request, allowed in self._answered.items()
            if logged.get(request) not in (("allowed",) if allowed else ("refused", None))
        ]
        self.tally["audited"] += len(self._answered)
        return wrong

    def move_out(self) -> list[str]:
        """All of it goes; what was wrong."""
        for bearer in (*self.guests, *self.tokens):
            bearer.close()
        found = self.check()
        for bearer in (*self.guests, *self.tokens):
            self._dismiss(bearer)
        for project in QUOTAS:
            for item in self.admin.list("constraint", project=project).items:
                self.admin.delete("constraint", item["name"], project=project)
        found += self.check_audit()
        for token in self.tokens:
            self._ignore_gone("token", token.name)
        for bearer in self.guests:
            self._ignore_gone("rolebinding", bearer.name)
        for project, user in PEOPLE.items():
            self.clients[project].close()
            self._ignore_gone("rolebinding", f"{user}-{project}")
            self._ignore_gone("user", user)
            for kind in ("image", "network"):
                for item in self.admin.list(kind, project=project).items:
                    self._ignore_gone(kind, item["name"], project)
            for item in self.admin.list("disruptionbudget", project=project).items:
                self._ignore_gone("disruptionbudget", item["name"], project)
            self._ignore_gone("quota", "project", project)
            self._ignore_gone("project", project)
        for name in CLASSES:
            self._ignore_gone("priorityclass", name)
        return found

    def close(self) -> None:
        for one in (*self.guests, *self.tokens):
            one.close()
        for client in (self.admin, *self.clients.values()):
            client.close()

    def _with_token(self, secret: str) -> Context:
        return msgspec.structs.replace(self.context, token=secret)

    def _bind(self, name: str, user: str, project: str) -> None:
        spec = {"role": "editor", "project": project, "users": [user]}
        self.admin.create({"kind": "rolebinding", "name": name, "spec": spec})

    def _give_binding(self, bearer: Bearer) -> str:
        bearer.turn(True, lambda: self._bind(bearer.name, bearer.name.removeprefix("guest-"), bearer.project))
        return self._note("binding given")

    def _take_binding(self, bearer: Bearer) -> str:
        bearer.turn(False, lambda: self.admin.delete("rolebinding", bearer.name))
        return self._note("binding taken")

    def _give_token(self, name: str, project: str) -> str:
        spec = {"use": "access", "role": "editor", "project": project, "subject": name}
        made: dict[str, Any] = {}
        while not made:
            begun = time.monotonic()
            try:
                made = self.admin.create({"kind": "token", "name": name, "spec": spec})
            except AlreadyExists:  # the first answer was lost, and with it the secret
                self.admin.delete("token", name)
        given = Turn(begun, time.monotonic(), allowed=True)
        bearer = Bearer(name, self._with_token(made["secret"]), project, [given])  # which asks immediately
        with self._lock:
            self.tokens.append(bearer)
        return self._note("token given")

    def _revoke(self, bearer: Bearer) -> str:
        bearer.turn(False, lambda: self.admin.delete("token", bearer.name))
        return self._note("token revoked")

    def _note(self, act: str) -> str:
        with self._lock:
            self.acts[act] += 1
        return act

    def _ignore_gone(self, kind: str, name: str, project: str | None = None) -> None:
        try:
            self.admin.delete(kind, name, project=project)
        except NotFound:
            return
