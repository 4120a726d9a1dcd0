"""What is secret is told once, to whom it is for, and never again: not in a log, an event, an error, a table, a description."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scenario.cli_lab import Fabric, start_fabric

from weft.cli.app import run
from weft.client import Client, Context, find_context
from weft.contracts.clock import SystemClock
from weft.kinds.registry import KINDS
from weft.objects.errors import WeftError
from weft.objects.quantity import parse_moment

USER_DATA = "#!/bin/sh\necho hunter2-in-user-data\n"


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with start_fabric() as fabric:
        yield fabric


def use(fabric: Fabric) -> list[str]:
    """Do with the fabric what people do, right and wrong; what it answered that anybody may see."""
    said = []

    def weft(*argv: str, stdin: str = "") -> str:
        done = fabric.weft(*argv, stdin=stdin)
        said.append(done.out + done.err)
        return done.out

    (fabric.folder / "setup.sh").write_text(USER_DATA)
    weft("vm", "create", "web", "--image", "tiny", "--memory", "64M", "--user-data", str(fabric.folder / "setup.sh"))
    for argv in (
        ["vm", "exec", "web", "--", "echo", "hello"],
        ["--debug", "vm", "get", "none"],
        ["--debug", "vm", "list"],
    ):
        said.extend(fabric.spawn(*argv).communicate("", timeout=60))
    weft("vm", "create", "web", "--image", "tiny", "--user-data", str(fabric.folder / "setup.sh"))
    weft(
        "vm",
        "create",
        "big",
        "--image",
        "tiny",
        "--memory",
        "900G",
        "--user-data",
        str(fabric.folder / "setup.sh"),
        "--detach",
    )
    manifest = {
        "kind": "vm",
        "name": "web",
        "spec": {"image": "tiny", "memory": "64M", "user_data": USER_DATA + "# more"},
    }
    weft("apply", "-f", "-", stdin=json.dumps(manifest))
    weft("diff", "-f", "-", stdin=json.dumps(manifest))
    weft("apply", "-f", "-", stdin=json.dumps({**manifest, "spec": {**manifest["spec"], "memroy": 1}}))  # type: ignore[dict-item]
    weft("explain", "vm", "web")
    weft("explain", "vm", "big")
    weft("vm", "restart", "web")
    weft("vm", "logs", "web")
    weft("image", "add", "bad", str(fabric.folder / "setup.sh"))
    weft("doctor")
    weft("doctor", "-o", "json")
    weft("context", "show", "-o", "json")
    for kind in KINDS:
        for output in ("table", "wide", "name"):
            weft("list", kind.plural, "-A", "-o", output) if kind.scope == "project" else weft(
                "list", kind.plural, "-o", output
            )
        for item in json.loads(fabric.weft("list", kind.plural, "-A", "-o", "json").out or "{}").get("items", []):
            weft("describe", kind.name, item["name"])
    weft("events", "--limit", "1000")
    weft("events", "--limit", "1000", "-o", "json")
    weft("vm", "delete", "big", "--yes")
    return said


def misuse(fabric: Fabric, token: str) -> list[str]:
    """Requests that carry a secret where none belongs; what others see of them."""
    client = Client(find_context(str(fabric.context)))
    quoted = urllib.parse.quote(token)
    for path in (f"/v1/tokens/{quoted}", f"/v1/{quoted}", f"/v1/vms?labels={quoted}", f"/{quoted}/x"):
        client.http.request("GET", path)
    client.http.request("GET", "/v1/vms", headers={"X-Request-Id": token, "Authorization": f"Bearer {token}x"})
    client.http.request("POST", "/v1/tokens", {"name": "x", "spec": {"use": token}})
    said = []
    for wrong in (f"{token}0", token[:-1], token.replace("weft_", "")):
        stranger = Client(Context(server=client.context.server, ca=client.context.ca, token=wrong))
        with pytest.raises(WeftError) as caught:
            stranger.list("vm")
        said.append(json.dumps(caught.value.to_dict()))
        stranger.close()
    client.close()
    return said


def known_secrets(fabric: Fabric, more: list[str]) -> dict[str, str]:
    """Name and text of all secrets that stand in the fabric's files, and ``more``."""
    found = {f"given {i}": text for i, text in enumerate(more)}
    found["admin's token"] = find_context(str(fabric.context)).token
    key = (fabric.folder / "server" / "ticket.key").read_bytes()
    found["ticket key"] = key.decode().strip() if key.isascii() else key.hex()
    found["ticket key in base64"] = base64.b64encode(key).decode()
    for path in fabric.folder.rglob("*.key"):
        if b"PRIVATE KEY" in path.read_bytes():
            found[f"{path.parent.name}/{path.name}"] = path.read_text().splitlines()[1]
    return {name: text.rpartition("_")[2] if text.startswith("weft_") else text for name, text in found.items() if text}


def _around(text: str, secret: str) -> str:
    at = text.index(secret)
    return text[max(0, at - 150) : at].replace("\n", " ↵ ")


def test_a_used_fabric_tells_its_secrets_to_nobody(fabric: Fabric) -> None:
    made = fabric.weft("token", "create", "ci", "--role", "viewer").out
    join = fabric.weft("token", "create", "--join", "--node", "n9").out
    tokens = re.findall(r"weft_[a-z0-9-]+_[0-9a-f]{64}", made + join)
    assert len(tokens) >= 2
    said = use(fabric) + misuse(fabric, tokens[0])
    secrets = known_secrets(fabric, tokens)
    assert len(secrets) >= 8, secrets.keys()
    places = {f"answer {i}": text for i, text in enumerate(said)}
    places |= {str(p): p.read_text(errors="replace") for p in fabric.folder.rglob("*.log")}
    places |= {str(p): p.read_text(errors="replace") for p in fabric.folder.rglob("journal.db*")}
    places |= {f"/proc/{p.pid}/cmdline": Path(f"/proc/{p.pid}/cmdline").read_text() for p in fabric._processes}
    leaks = [(name, place) for name, text in secrets.items() for place, told in places.items() if text in told]
    leaks += [("user data", place) for place, told in places.items() if "hunter2" in told]
    assert leaks == [], [(name, place, _around(places[place], secrets.get(name, "hunter2"))) for name, place in leaks]
    stored = b"".join(p.read_bytes() for p in (fabric.folder / "server").glob("store.db*"))
    assert stored and not [name for name, text in secrets.items() if text.encode() in stored]


def test_files_with_secrets_are_their_owners_alone(fabric: Fabric) -> None:
    wide = []
    for path in fabric.folder.rglob("*"):
        is_secret = path.suffix in (".key", ".token") or path.name == "context.json"
        if path.is_file() and is_secret and stat.S_IMODE(path.stat().st_mode) & 0o077:
            wide.append(str(path))
    assert wide == [] and os.path.exists(fabric.context)


class FastClock(SystemClock):
    def now(self) -> float:
        return super().now() + 7200.0


def test_doctor_sees_that_the_clocks_differ(fabric: Fabric, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--context", str(fabric.context), "doctor"], FastClock) == 1
    said = capsys.readouterr().out
    assert "2h ahead of the server's" in said and "timedatectl" in said
    assert run(["--context", str(fabric.context), "token", "create", "brief", "--expires", "1h"], FastClock) == 0
    expires = parse_moment(json.loads(fabric.weft("get", "token/brief", "-o", "json").out)["spec"]["expires_at"])
    assert 3500 < expires - SystemClock().now() < 3700  # by the server's clock, not by the one that is wrong
    found = {one["subject"]: one for one in json.loads(fabric.weft("doctor", "-o", "json").out)["items"]}
    assert re.fullmatch(r"answers the server in [\d.e-]+ ms", found["store"]["fact"])
    assert "clock" in fabric.weft("doctor").out and "agrees with the server's" in fabric.weft("doctor").out
