"""Verbs of networks: the traffic of the workloads in them, of now and of the last day; and the network between the nodes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.exit_codes import INTERRUPTED
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target, usage
from weft.cli.network.flows import (
    FLOW_COLUMNS,
    draw_flows,
    fetch_flows,
    group_flows,
    read_ports,
    read_protocol,
)
from weft.cli.network.map import draw_map
from weft.cli.network.matrix import MATRIX_COLUMNS, draw_plot, draw_rows, fetch_matrix
from weft.cli.network.topology import LINK_COLUMNS, draw_links, fetch_topology
from weft.cli.network.trace import draw_trace, fetch_trace, read_end
from weft.cli.output.formats import print_data, print_line, print_rows
from weft.cli.output.terminal import CLEAR, is_terminal
from weft.cli.session import Session
from weft.cli.stream.watch import watch_documents
from weft.cli.stream.whole_file import refuse_existing
from weft.kinds.parts.stream_verbs import LONGEST_SINCE_SECONDS
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import InvalidInput


def flows_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft network flows --vm web --protocol tcp --ports 80,443 --watch`."""
    params = [
        *_workload(),
        click.Option(
            ["--protocol"], metavar="NAME", default="", help="Only this protocol: tcp, udp, icmp or a number."
        ),
        click.Option(
            ["--ports"], metavar="PORT,…", default="", help="Only these ports of either end: 80,443,8000-8100."
        ),
        click.Option(["--each"], is_flag=True, help="Show each flow in a row of its own, with both ports."),
        click.Option(
            ["--since"],
            type=options.Duration(least=1.0, most=LONGEST_SINCE_SECONDS),
            metavar="TIME",
            help="Show sums of all flows since then, ended ones too: 10m, 24h (at most 25h).",
        ),
        click.Option(
            ["-w", "--watch"], is_flag=True, help="Show the flows repeatedly, with their rates, until Ctrl-C."
        ),
        *options.table(),
        options.output(),
    ]
    return options.build(verb, "Show network flows of a workload.", _flows, kind, params)


def matrix_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft network matrix --since 1h --plot`."""
    params = [
        click.Option(
            ["--network"],
            default="",
            metavar="NAME",
            help="Only this network.",
            shell_complete=complete_name("network"),
        ),
        click.Option(
            ["--since"],
            type=options.Duration(least=1.0, most=LONGEST_SINCE_SECONDS),
            default="1h",
            show_default=True,
            metavar="TIME",
            help="Sums since then, at most 25h.",
        ),
        click.Option(["--plot"], is_flag=True, help="Draw a heat map."),
        *options.table(),
        options.output(),
    ]
    return options.build(verb, "Show the traffic between the workloads of a project.", _matrix, kind, params)


def _matrix(session: Session, kind: Kind | None, network: str, since: float, plot: bool) -> int | None:
    if network and "/" not in network:
        session.client.get("network", network)  # raises NotFound
    if plot and session.is_document:
        raise usage("--plot draws, and -o prints data", "leave one of them out")
    matrix = fetch_matrix(session, since, network)
    if session.is_document:
        print_data(session, msgspec.to_builtins(matrix))
    elif not matrix.traffic and not session.is_data:
        session.notify("no traffic")
    elif plot:
        print("\n".join(draw_plot(matrix, session.paint)))
    else:
        print_rows(session, MATRIX_COLUMNS, draw_rows(matrix))
    return 1 if matrix.unanswered else 0


def trace_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft network trace vm/web vm/db --port 5432`."""
    params = [
        click.Argument(["source"], metavar="FROM"),
        click.Argument(["target"], metavar="TO"),
        click.Option(
            ["--port"],
            metavar="N[/udp]",
            default="",
            help="Port of TO. [a service's first port, a published port itself, else a ping]",
        ),
        click.Option(["--protocol"], type=click.Choice(["tcp", "udp", "icmp"]), help="Protocol. [tcp with a port]"),
        options.output(),
    ]
    text = (
        "Show whether connections get from FROM to TO, and what decides at each step.\n\n"
        "FROM is a workload (vm/web, or vm/web@NETWORK for one of its networks); for a published port also internet or an address. "
        "TO is a workload, service/NAME, port/PORT, an address, or internet; KIND/PROJECT/NAME is another project's. "
        "The exit code is 0 if all connections are allowed, 1 if not."
    )
    return options.build(verb, text, _trace, kind, params)


def _trace(session: Session, kind: Kind | None, source: str, target: str, port: str, protocol: str | None) -> int:
    ends = read_end(session, source), read_end(session, target)
    found = fetch_trace(session, *ends, port, protocol or "")
    if session.is_document:
        print_data(session, found)
    else:
        print("\n".join(draw_trace(found, session)))
    return 0 if found["verdict"] == "allowed" else 1


def topology_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft network topology --plot map.svg`."""
    params = [
        click.Option(
            ["--node"],
            metavar="NAME",
            default="",
            help="Only this node's links, to every other node.",
            shell_complete=complete_name("node"),
        ),
        click.Option(
            ["--by"],
            type=click.Choice(["node", "place"]),
            default=None,
            help="Show nodes or places (zone and rack) [node; place if there are more than 200 nodes].",
        ),
        click.Option(["--plot"], metavar="FILE", help="Write a map to this SVG file."),
        options.replace(),
        *options.table(),
        options.output(),
    ]
    return options.build(
        verb, "Show the network between the nodes: round trips, bandwidths, use.", _topology, kind, params
    )


def _topology(session: Session, kind: Kind | None, node: str, by: str | None, plot: str | None, force: bool) -> None:
    if session.given_project:
        raise usage(f"-p {session.given_project}: the network between the nodes belongs to no project", "leave -p out")
    if node and by == "place":
        raise usage("--by place shows places, and --node the links of one node", "leave one of them out")
    if plot is not None and not plot.endswith(".svg"):
        raise usage(
            f"--plot: a map is written as SVG, and {plot!r} doesn't end with .svg", "for example --plot map.svg"
        )
    if plot is not None:
        refuse_existing(Path(plot), "--plot", force=force)
    found = fetch_topology(session, by or "", node)
    if plot is not None:
        try:
            Path(plot).write_text(draw_map(found))
        except OSError as problem:
            raise InvalidInput(f"--plot: {plot} can't be written: {problem.strerror}", field="--plot") from problem
        session.notify(f"{plot}  written")
    if session.is_document:
        print_data(session, found)
    elif plot is None:
        if not found["links"] and not session.is_data:
            session.notify(
                "no links: they are known once two nodes have measured each other, a minute after they joined"
            )
            return
        print_rows(session, LINK_COLUMNS, draw_links(found))
    if found["left_out"]:
        session.notify(f"{found['left_out']} links are left out; --node NAME shows all of one node")


def _workload() -> list[click.Parameter]:
    return [
        click.Option(["--vm"], metavar="NAME", help="The VM.", shell_complete=complete_name("vm")),
        click.Option(["--container"], metavar="NAME", help="The container.", shell_complete=complete_name("container")),
    ]


def _read(vm: str | None, container: str | None) -> Target:
    """The one workload. Raises UsageError."""
    given = [Target(BY_NAME[kind], name) for kind, name in (("vm", vm), ("container", container)) if name]
    if len(given) != 1:
        raise click.UsageError("give one workload: --vm NAME or --container NAME")
    return given[0]


def _flows(
    session: Session,
    kind: Kind | None,
    protocol: str,
    ports: str,
    each: bool,
    since: float | None,
    watch: bool,
    vm: str | None,
    container: str | None,
) -> int | None:
    target = _read(vm, container)
    asked: dict[str, Any] = {"protocol": read_protocol(protocol), "ports": read_ports(ports)}
    if since is not None:
        if watch:
            raise click.UsageError("--since can't be given with --watch: what was recorded is shown once")
        asked["since"] = since
    if not watch:
        _show(session, fetch_flows(session, target, asked), each=each, live=since is None)
        return 0

    def show(answer: dict[str, Any]) -> None:
        if session.is_document:
            print_line(session, answer)
        else:
            print(CLEAR if is_terminal(sys.stdout) else "", end="")
            _show(session, answer, each=each, live=True)
            sys.stdout.flush()

    try:
        return watch_documents(session, target, "flows", asked, show)
    except KeyboardInterrupt:
        return INTERRUPTED  # enough was seen


def _show(session: Session, answer: dict[str, Any], *, each: bool, live: bool) -> None:
    flows: Sequence[dict[str, Any]] = answer["flows"]
    if session.is_document:
        print_data(session, answer)
        return
    if not flows and not session.is_data:
        session.notify("no flows now; --since 1h shows those that have ended" if live else "no flows since then")
        return
    print_rows(session, FLOW_COLUMNS, draw_flows(flows if each else group_flows(flows)))
    if answer["left_out"]:
        session.notify(f"{answer['left_out']} smaller flows are left out")
    if answer.get("lacking"):
        session.notify("some flows ended before they were counted, so sums can be too low")
