"""A process's metrics as text: names, escapes, and what is left out."""

from __future__ import annotations

from weft.telemetry.metrics.exposition import Family, list_process, one, render_metrics


def test_metrics_are_text_with_their_meaning_and_type() -> None:
    families = [
        one("weft_nodes_reporting", "Nodes", 3),
        Family("weft_api_requests_total", "Requests", {(("method", "GET"), ("code", "200")): 7}),
        Family("weft_guest_cpu_cores", "Cores", {}),
    ]
    assert render_metrics(families).decode() == (
        "# HELP weft_nodes_reporting Nodes\n# TYPE weft_nodes_reporting gauge\nweft_nodes_reporting 3\n"
        "# HELP weft_api_requests_total Requests\n# TYPE weft_api_requests_total counter\n"
        'weft_api_requests_total{method="GET",code="200"} 7\n'
    )


def test_no_value_of_a_label_can_begin_a_line_of_its_own() -> None:
    text = render_metrics([Family("a", "h", {(("name", 'x"} 1\nb{y="\\'),): 1.5})]).decode()
    assert text.splitlines()[2:] == ['a{name="x\\"} 1\\nb{y=\\"\\\\"} 1.5']


def test_a_process_says_what_it_uses() -> None:
    found = {family.name: family.values[()] for family in list_process()}
    assert found["process_resident_memory_bytes"] > 1 << 20 and found["process_open_fds"] >= 3
    assert found["process_cpu_seconds_total"] > 0
