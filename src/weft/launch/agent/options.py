"""The command lines of ``weft agent`` and ``weft agent join``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from weft.agent.node.enrolment import default_node_name
from weft.launch.agent.drivers import CONTAINERD, NETWORKS, RUNTIMES, VOLUMES
from weft.launch.process.address import take_address, take_host, take_registry, take_server
from weft.launch.process.amounts import Parser, cores, count, duration, port, size
from weft.telemetry.logs.store import LEAST_BYTES, MOST_AGE_SECONDS, MOST_BYTES

STATE = Path("/var/lib/weft")
_LEAST_BYTES = 64 << 20  # of memory and of disk space: with less, a node holds nothing
_ISOLATED = re.compile(r"microvm|kata(-[a-z0-9]+)*")


def parse_join(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="weft agent join", description="Make this machine a node of a fabric.")
    parser.add_argument("server", metavar="URL", type=take_server, help="the server, like https://10.0.0.1:8443")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--token", help="a join token, from weft token create --join")
    given.add_argument("--token-file", type=Path, help="a file with the token")
    parser.add_argument(
        "--ca-sha256", required=True, metavar="HEX", help="SHA-256 digest of the server's CA certificate"
    )
    parser.add_argument("--state", type=Path, help=f"folder for the node's data (default {STATE}/NODE)")
    parser.add_argument("--node", default=default_node_name(), help="the node's name (default: the host name)")
    parser.add_argument("--address", type=take_host, help="the node's address as other nodes reach it")
    return _with_state(parser.parse_args(argv))


def make_agent_parser() -> Parser:
    parser = Parser(
        prog="weft agent",
        description="Run a node's agent in the foreground.",
        epilog="Flags override variables (WEFT_AGENT_LOG_SIZE for --log-size), and these the file agent.yaml (log_size: 4G)."
        " weft agent config NODE --show-origin shows what is in force.",
    )
    parser.add_argument(
        "node",
        metavar="NODE",
        help="the node's name; or join URL, to make this machine a node; or config NODE, to show its settings",
    )
    parser.add_argument("--state", type=Path, help=f"the node's folder, made by weft agent join (default {STATE}/NODE)")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a file with settings (default agent.yaml in the node's folder, if any)",
    )
    parser.add_argument(
        "--server", metavar="URL", type=take_server, help="the server's address (default: where the node joined)"
    )
    parser.add_argument(
        "--gateway",
        metavar="ADDRESS:PORT",
        type=take_address,
        help="the gateway's address (default: where it was when the node joined)",
    )
    parser.add_argument("--run-dir", type=Path, help="folder for sockets, with a short path (default /run/weft/ID)")
    parser.add_argument("--link-prefix", help="prefix of link names, at most 4 characters")
    parser.add_argument(
        "--underlay-address", "--address", type=take_host, help="this node's address as other nodes reach it"
    )
    parser.add_argument("--underlay-link", help="the interface with this address")
    parser.add_argument("--cgroup", help="cgroup of the guests, below each controller's mount")
    parser.add_argument("--cpu", type=cores(), help="cores to offer to guests (default: all)")
    parser.add_argument(
        "--memory", type=size(_LEAST_BYTES), help="memory to offer to guests (default: all but a reserve)"
    )
    parser.add_argument(
        "--disk", type=size(_LEAST_BYTES), help="disk space to offer to guests (default: most of what is free)"
    )
    parser.add_argument(
        "--pool",
        action="append",
        default=[],
        metavar="NAME=PLACE",
        help="storage to offer as pool NAME, beside local (repeatable): PATH, a folder, or rbd:POOL, a pool of Ceph for RBD images "
        "(rbd:POOL?conf=/etc/ceph/ceph.conf&user=weft); nodes that see the same storage share the pool",
    )
    parser.add_argument(
        "--echo-port", type=port(), default=8445, help="UDP port that answers other nodes' probes (default 8445)"
    )
    parser.add_argument("--sysfs", default="/sys", help="the kernel's device folder (default /sys)")
    parser.add_argument(
        "--no-devices",
        dest="devices",
        action="store_false",
        help="don't offer GPUs and virtual functions: another node of this machine does",
    )
    parser.add_argument(
        "--metrics",
        metavar="ADDRESS:PORT",
        help="where to answer /metrics, /healthz and /readyz, too, without credentials: on loopback, or a network of administrators"
        " (default nowhere)",
    )
    parser.add_argument(
        "--vxlan-port", type=port(), default=4789, help="UDP port of networks between the nodes (default 4789)"
    )
    parser.add_argument(
        "--runtime",
        choices=sorted(RUNTIMES),
        default="qemu",
        help="what runs VMs: qemu, none for a node without VMs, or fake for tests of weft itself, which only pretends to"
        " (default: qemu)",
    )
    parser.add_argument(
        "--container-runtime",
        type=read_container_runtime,
        metavar="auto|crun|runc|containerd[=ADDRESS]|none",
        help="what runs containers: auto (the first of crun and runc that works here), one of them, the containerd at "
        f"ADDRESS ({CONTAINERD}), or none (default: auto)",
    )
    parser.add_argument(
        "--isolated-runtime",
        type=read_isolated_runtime,
        default="microvm",
        metavar="microvm|kata[-VARIANT][=ADDRESS]",
        help="what runs containers in machines of their own (isolation vm): weft itself, or Kata with the containerd at "
        "ADDRESS (default: microvm). Without ADDRESS, Kata uses the containerd that holds containers, if one does",
    )
    parser.add_argument(
        "--microvm-dir",
        type=Path,
        default=STATE / "microvm",
        metavar="FOLDER",
        help="folder with the kernel and init of containers' machines (isolation vm), built by python -m weft.images microvm "
        f"(default {STATE}/microvm)",
    )
    parser.add_argument(
        "--plain-registry",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        type=take_registry,
        help="an image registry to use over http without TLS, in addition to those on loopback (repeatable)",
    )
    parser.add_argument(
        "--functions",
        choices=("auto", "none"),
        help="isolations of functions to offer: all that work here (auto), or none (default: auto)",
    )
    parser.add_argument(
        "--local-functions",
        metavar="ADDRESS:PORT",
        help="where programs at this node invoke functions that name it (local_nodes), also without the server: on loopback, or "
        "with --local-functions-tls (default nowhere)",
    )
    parser.add_argument(
        "--local-functions-tls",
        type=Path,
        metavar="FILE",
        help="the key and certificate of that address, as PEM in one file",
    )
    parser.add_argument(
        "--warm-after",
        type=count(0, 1000),
        default=0,
        metavar="VMS",
        help="after how many VMs of an image within a day to keep a booted machine of it, from which further ones start;"
        " 0: only as ordered (default 0)",
    )
    parser.add_argument(
        "--log-size",
        type=size(LEAST_BYTES),
        default=MOST_BYTES,
        metavar="SIZE",
        help="disk space for what workloads print here, and this agent logs, compressed; the oldest lines go first (default 1G)",
    )
    parser.add_argument(
        "--log-age",
        type=duration(60.0),
        default=MOST_AGE_SECONDS,
        metavar="TIME",
        help="how long such lines are kept (default 14d)",
    )
    parser.add_argument(
        "--log-syslog",
        metavar="PATH|HOST:PORT",
        help="also send these lines to a syslog: a unix socket like /dev/log, or by UDP",
    )
    parser.add_argument(
        "--log-otlp",
        metavar="URL",
        help="also send these lines to an OpenTelemetry collector, like http://127.0.0.1:4318",
    )
    parser.add_argument(
        "--network",
        choices=sorted(NETWORKS),
        default="bridge",
        help="what connects guests; fake is for tests of weft itself (default: bridge)",
    )
    parser.add_argument(
        "--volume",
        choices=sorted(VOLUMES),
        default="directory",
        help="what keeps disks; fake is for tests of weft itself (default: directory)",
    )
    return parser


def read_container_runtime(text: str) -> str:
    word, sign, address = text.partition("=")
    if word not in ("auto", "crun", "runc", "containerd", "none") or (sign and word != "containerd"):
        raise argparse.ArgumentTypeError(f"{text}: auto, crun, runc, containerd, containerd=ADDRESS, or none")
    if sign and not address.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text}: the address must be a socket's absolute path, like {CONTAINERD}")
    return text


def read_isolated_runtime(text: str) -> str:
    word, sign, address = text.partition("=")
    if not _ISOLATED.fullmatch(word) or (sign and word == "microvm"):
        raise argparse.ArgumentTypeError(
            f"{text}: microvm, kata, kata-VARIANT (like kata-clh), or one of them =ADDRESS"
        )
    if sign and not address.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text}: the address must be a socket's absolute path, like {CONTAINERD}")
    return text


def _with_state(options: argparse.Namespace) -> argparse.Namespace:
    options.state = options.state or STATE / options.node
    return options
