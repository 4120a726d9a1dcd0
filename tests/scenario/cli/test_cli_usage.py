"""`weft usage` against a real server: what a project requested, as a table, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import time

from tests.scenario.cli_lab import start_fabric


def test_what_a_project_requested_is_shown_soon_after_its_vm_is_gone() -> None:
    with start_fabric() as fabric:
        said = fabric.weft("vm", "create", "web", "--image", "tiny", "--cpu", "0.5", "--memory", "64M")
        assert said.code == 0, said.err
        assert fabric.weft("vm", "delete", "web", "--yes").code == 0
        ends = time.monotonic() + 60
        while not (found := json.loads(fabric.weft("usage", "-o", "json").out))["items"]:
            assert time.monotonic() < ends
            time.sleep(0.5)
        [item] = found["items"]
        assert item["project"] == "default" and item["requested"]["core_hours"] > 0
        assert found["total"]["requested"] == item["requested"]
        [row] = csv.DictReader(io.StringIO(fabric.weft("usage", "--since", "2h", "-A", "-o", "csv").out))
        assert row["PROJECT"] == "default" and float(row["CORE-H"]) == item["requested"]["core_hours"]
        assert item["user"] == row["USER"] and item["user"].startswith("token:admin-")
        for by, left_out in (("user", "project"), ("project", "user")):
            [summed] = json.loads(fabric.weft("usage", "--by", by, "-o", "json").out)["items"]
            assert summed == {name: value for name, value in item.items() if name != left_out}
            [row] = csv.DictReader(io.StringIO(fabric.weft("usage", "--by", by, "-o", "csv").out))
            assert row[by.upper()] == item[by] and left_out.upper() not in row
        table = fabric.weft("usage").out.splitlines()
        assert table[0].split()[:2] == ["PROJECT", "USER"] and table[-1].startswith("total")
        assert fabric.weft("usage", "--since", "soon").code != 0
