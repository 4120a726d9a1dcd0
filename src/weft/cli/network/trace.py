"""The trace of a connection: what it is asked by, and how it is shown."""

from __future__ import annotations

import ipaddress
import urllib.parse
from typing import Any

from weft.cli.command.grammar import PLACED
from weft.cli.command.lookup import find_targets
from weft.cli.command.target import find_noun, one_target, usage
from weft.cli.session import Session
from weft.client.answer import raise_problem

Answer = dict[str, Any]
_SIGNS = {True: "✓", False: "✗", None: "–"}
_STAGES = {"spoofGuard": "spoof guard"}
_COLORS = {"allowed": "green", "blocked": "red", "partial": "yellow", "unknown": "yellow"}
_ENDS = "give vm/NAME, container/NAME, service/NAME, port/PORT, an address, or internet"


def read_end(session: Session, word: str) -> str:
    """An end as the API takes it. Raises UsageError, NotFound for an unknown kind."""
    if word == "internet" or _is_address(word):
        return word
    what, at, nic = word.partition("@")
    words = what.split("/")
    if len(words) == 1:
        found = one_target(find_targets(session, None, [what], PLACED), f"{word}: give one object", _ENDS)
        return f"{found.kind.name}/{found.name}{at}{nic}"
    kind = find_noun(words[0])
    if "port" in kind.display.aliases:  # port/8080, port/53/udp
        port, protocol = words[1], words[2] if len(words) == 3 else "tcp"
        return f"{kind.name}/{port if '-' in port else f'{protocol}-{port}'}"
    if len(words) > 3 or not all(words):
        raise usage(f"{word[:80]!r} is not an end of a connection", _ENDS)
    return f"{'/'.join([kind.name, *words[1:]])}{at}{nic}"


def fetch_trace(session: Session, source: str, target: str, port: str, protocol: str) -> Answer:
    """``GET /v1/projects/PROJECT/networktrace``. Raises WeftError."""
    asked = {"from": source, "to": target, "port": port, "protocol": protocol}
    query = urllib.parse.urlencode({name: value for name, value in asked.items() if value})
    project = urllib.parse.quote(session.client.project, safe="")
    answer = session.client.http.request("GET", f"/v1/projects/{project}/networktrace?{query}")
    raise_problem(answer)
    found: Answer = answer.json()
    return found


def draw_trace(found: Answer, session: Session) -> list[str]:
    """Its lines: the question, a line for each step, the verdict."""
    what = found["protocol"] + (f"/{found['port']}" if found["port"] else "")
    lines = [f"{what}  {found['source']} → {found['target']}"]
    width = max((len(_name(step)) for step in found["steps"]), default=0)
    owners = max((len(step["by"]) for step in found["steps"]), default=0)
    lines += [
        f"{_SIGNS[step['passes']]} {_name(step):{width}}  {step['by']:{owners}}  {step['message']}"
        for step in found["steps"]
    ]
    verdict = session.paint.color(found["verdict"], _COLORS[found["verdict"]])
    why = (
        f" by {found['by']}: {found['message']}" if found["by"] else f": {found['message']}" if found["message"] else ""
    )
    silent = f", but {found['silent']}" if found["silent"] and found["verdict"] == "allowed" else ""
    lines.append(f"{verdict}{why}{silent}")
    if found["silent"] and not silent:
        lines.append(f"also: {found['silent']}")
    if found["remedy"]:
        lines.append(f"next: {found['remedy']}")
    return lines


def _name(step: Answer) -> str:
    stage: str = step["stage"]
    return _STAGES.get(stage, stage)


def _is_address(word: str) -> bool:
    try:
        ipaddress.IPv4Address(word)
    except ValueError:
        return False
    return True
