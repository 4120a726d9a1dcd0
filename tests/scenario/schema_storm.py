"""Requests made from the API's own description: those that fit it and those that don't, to every operation.

Needs schemathesis. What the API servers answer must be of a status, a type and a form that the description tells, and never 5xx.
"""

from __future__ import annotations

import random
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.scenario.api_lab import ApiLab, make_image, make_vm

from weft.api.object import verbs
from weft.api.openapi import describe_api
from weft.telemetry.traces.store import TraceStore

SILENCE_SECONDS = 30.0
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
KNOWN = {"project": ["default", "other"], "name": ["web", "tiny", "default", "data", "n1", "other"]}


def operations() -> list[APIOperation[Any, Any, Any, Any]]:
    """All operations of the API."""
    return [found.ok() for found in schemathesis.openapi.from_dict(describe_api()).get_all_operations()]


class Storm:
    """Requests to the API servers of ``lab``, as an admin, or as the node or the joiner where only they are heard."""

    def __init__(self, lab: ApiLab) -> None:
        self.lab = lab
        lab.api.spans = self.spans = TraceStore(lab.folder / "spans", lab.folder / "traces", lab.clock)
        self._place_seconds = verbs.PLACE_SECONDS
        verbs.PLACE_SECONDS = 0.1  # an exec waits for its VM's place, which nobody gives here
        self.node = lab.join("n1")
        self.asked = 0
        self.problems: list[str] = []
        furnish(lab)
        ca = str(lab.authority.ca_path)
        token = lab.client.create({"kind": "token", "name": "joiner", "spec": {"use": "join"}})["secret"]
        self.sessions = {"person": self._session(ca, lab.context.token), "joiner": self._session(ca, token)}
        self.sessions["node"] = self._session(ca, "")
        self.sessions["node"].cert = (str(self.node.key.with_suffix(".crt")), str(self.node.key))

    def _session(self, ca: str, token: str) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.verify = ca
        if token:
            session.headers["Authorization"] = f"Bearer {token}"
        return session

    def ask(self, operation: APIOperation[Any, Any, Any, Any], number: int, most: int) -> None:
        """Up to ``most`` requests to one operation; ``number`` is the seed. Raises the first that is answered wrongly."""
        chance = random.Random(number)
        path = operation.path
        session = self.sessions[
            "joiner" if path.endswith("/join") else "node" if path.endswith((":report", ":renew")) else "person"
        ]

        @seed(number)
        @settings(
            max_examples=most,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(GenerationMode.POSITIVE) | operation.as_strategy(GenerationMode.NEGATIVE))
        def ask(case: schemathesis.Case) -> None:
            for name, known in KNOWN.items():
                if name in case.path_parameters and chance.random() < 0.7:
                    case.path_parameters[name] = chance.choice(known)
            if isinstance(case.query, dict):
                case.query.pop("watch", None)  # that would last
            self.asked += 1
            try:
                response = case.call(
                    base_url=self.lab.context.server, session=session, verify=session.verify, timeout=SILENCE_SECONDS
                )
                case.validate_response(response, checks=CHECKS)
            except Exception as problem:  # kept as it was: what the API servers hold now, a replay may not meet again
                self.problems.append(f"{operation.label}: {case.as_curl_command()[:600]}: {problem}")
                raise

        ask()

    def close(self) -> None:
        self.spans.close()
        verbs.PLACE_SECONDS = self._place_seconds
        for session in self.sessions.values():
            session.close()


def furnish(lab: ApiLab) -> None:
    """Something of every kind, so that requests find what they ask for."""
    for made in (
        {"kind": "project", "name": "other"},
        make_image(),
        {"kind": "volume", "name": "data", "spec": {"size": 1 << 30}},
        make_vm("web", volumes=["data"], publish=["18080:80"]),
    ):
        lab.client.create(made)
