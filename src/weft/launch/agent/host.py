"""The machine as an agent's drivers see it: by its settings first, the rest detected. Makes the folders that are root's alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from urllib.parse import urlsplit

from weft.agent.node.enrolment import Enrolment
from weft.agent.node.facts import find_link, inspect_capacity, recall_own_address
from weft.contracts.driver.host import Host
from weft.objects.identity import short_id


def close_folders(*folders: Path) -> None:
    """Let only root into what names guests, networks and their addresses. Guests have users of their own and are handed what they
    may touch; a network's name server sees its own folder alone, mounted elsewhere."""
    for folder in folders:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)


def make_host(options: argparse.Namespace, state: Path, enrolment: Enrolment) -> Host:
    """The machine as the drivers see it: options first, the rest detected."""
    id = short_id(enrolment.node_uid)
    server = urlsplit(options.server or enrolment.server)
    address = options.underlay_address or enrolment.address
    if not address:
        address = recall_own_address(state, server.hostname or "127.0.0.1", server.port or 443)
    run_dir: Path = options.run_dir or Path("/run/weft") / id
    run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    close_folders(state / "guests", state / "microvm" / "guests", run_dir / "network")
    return Host(
        node=enrolment.node,
        node_uid=enrolment.node_uid,
        state_dir=str(state),
        run_dir=str(run_dir),
        link_prefix=options.link_prefix or f"w{id[:3]}",
        underlay_address=address,
        underlay_link=options.underlay_link or find_link(address),
        cgroup=options.cgroup or f"weft/{id}",
        capacity=inspect_capacity(
            str(state),
            options.cpu,
            options.memory,
            options.disk,
        ),
        vxlan_port=options.vxlan_port,
        echo_port=options.echo_port,
        sysfs=options.sysfs,
        devices=options.devices,
    )
