"""Flows as people see them: one row for all to the same port, or each in a row of its own."""

from __future__ import annotations

from typing import Any

import click
import pytest

from weft.cli.network.flows import FLOW_COLUMNS, draw_flows, group_flows, read_ports, read_protocol
from weft.cli.output.table import draw_table
from weft.cli.output.timestamp import render_moments


def flow(**over: Any) -> dict[str, Any]:
    values = {
        "network": "default",
        "direction": "out",
        "protocol": "tcp",
        "source": "10.0.0.2",
        "source_name": "hello",
        "source_port": 40000,
        "destination": "10.0.0.3",
        "destination_name": "shop",
        "destination_port": 80,
        "bytes": 100,
        "packets": 3,
        "bytes_per_second": None,
        "verdict": "allowed",
        "security_group": "",
    }
    return {**values, **over}


def test_a_hundred_requests_to_one_port_are_one_row_with_their_number() -> None:
    flows = [flow(source_port=40000 + n) for n in range(100)]
    other = [flow(destination_port=81, bytes=74, packets=1, verdict="unanswered")]
    asked, unanswered = draw_flows(group_flows([*other, *flows]))
    assert asked[1:6] == ["hello 10.0.0.2", "shop 10.0.0.3:80", "100", "10 KiB", "300"]
    assert unanswered[2:4] == ["shop 10.0.0.3:81", "1"] and unanswered[7] == "sent, no answer"
    assert [row[1] for row in draw_flows(flows)][:2] == ["hello 10.0.0.2:40000", "hello 10.0.0.2:40001"]


def test_rates_are_summed_and_there_is_no_column_for_them_without_a_watch() -> None:
    once = draw_table(FLOW_COLUMNS, draw_flows(group_flows([flow(), flow()])))
    assert "RATE" not in once and "FLOWS" in once
    (row,) = draw_flows(group_flows([flow(bytes_per_second=1024.0), flow(bytes_per_second=1024.0), flow()]))
    assert row[6] == "2 KiB/s"
    assert "FLOWS" not in draw_table(FLOW_COLUMNS, draw_flows([flow()]))


def test_a_protocol_or_port_that_is_none_is_refused_with_what_was_meant() -> None:
    assert [read_protocol(word) for word in ("", "TCP", "132")] == ["", "tcp", "132"]
    for word, remedy in (("tpc", "did you mean tcp"), ("sctp", "tcp, udp, icmp, or a number"), ("256", "up to 255")):
        with pytest.raises(click.UsageError, match=remedy):
            read_protocol(word)
    with pytest.raises(click.UsageError, match="'0' is not a port"):
        read_ports("0")
    with pytest.raises(click.UsageError, match="'80-' is not a port"):
        read_ports("80-")


def test_times_of_flows_are_text_for_programs() -> None:
    document = render_moments(b'{"at":1795553946.06,"flows":[{"began_at":1795553946.06}]}')
    assert document.count(b'"2026-11-24T20:59:06.060Z"') == 2


def test_rows_of_folded_flows_add_up_how_many_there_were() -> None:
    folded = [flow(flows=7), flow(flows=2), flow(flows=1, destination_port=81)]
    assert [row[3] for row in draw_flows(group_flows(folded))] == ["9", "1"]
