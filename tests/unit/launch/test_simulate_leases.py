"""weft simulate leases: logs of jobs through a queue."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.launch.placement.simulate import main
from weft.scheduler.simulate.lease_queue import replay
from weft.scheduler.simulate.swf import Job, read_swf

DATA = Path(os.environ.get("WEFT_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")) / "swf"
KTH = DATA / "KTH-SP2-1996-2.part1.swf.gz"
needs_data = pytest.mark.skipif(not KTH.exists(), reason=f"no job logs in {DATA}: set WEFT_DATA")


def line(number: int, submit: float, run: float, processors: int, request: float = -1, user: int = 1) -> str:
    fields = [-1.0] * 18
    fields[0], fields[1], fields[3], fields[4], fields[8], fields[11] = number, submit, run, processors, request, user
    return " ".join(f"{field:g}" for field in fields)


def simulate(capsys: pytest.CaptureFixture[str], trace: Path, *argv: object) -> dict[str, Any]:
    assert main(["leases", "--trace", str(trace), *map(str, argv), "-o", "json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_small_log_comes_out_as_worked_out_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.swf"
    lines = [
        "; MaxProcs: 4",
        line(1, 0, 100, 3, 100),
        line(2, 10, 50, 4, 50),
        line(3, 20, 30, 1, 40),
        line(4, 20, 0, 1),
    ]
    log.write_text("\n".join(lines))
    answer = simulate(capsys, log, "--nodes", 4, "--model", "easy")
    assert answer == {
        "average_bounded_slowdown": round((1 + 140 / 50 + 1) / 3, 4),
        "utilisation_percent": round(100 * (300 + 200 + 30) / (4 * 150), 3),
        "leases": [
            {"id": "1", "state": "DONE", "start": 0.0, "end": 100.0},
            {"id": "2", "state": "DONE", "start": 100.0, "end": 150.0},
            {"id": "3", "state": "DONE", "start": 20.0, "end": 50.0},
        ],
    }


@pytest.mark.parametrize(
    ("text", "argv", "fault"),
    [
        ("1 2 3", [], "log.swf:1: 3 of 18 columns"),
        (line(1, 0, 5, 1).replace("1 0", "1 zero", 1), [], "log.swf:1: a column is not a number"),
        (line(1, 0, 5, 9), [], "job 1 needs 9 processors, more than --nodes 4"),
        (line(1, 0, 5, 1) + "\n" + line(1, 0, 5, 1), [], "job 1 appears twice"),
        (line(1, 0, 0, 1), [], "no job of the log ran"),
        (line(1, 0, 5, 1).replace("1 0", "1 nan", 1), [], "log.swf:1: a column is not a number"),
        ("", ["--nodes", "0"], "--nodes"),
        ("", ["--model", "best"], "--model"),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, argv: list[str], fault: str
) -> None:
    (tmp_path / "log.swf").write_text(text)
    assert main(["leases", "--trace", str(tmp_path / "log.swf"), "--nodes", "4", *argv]) == 2
    said = capsys.readouterr()
    assert fault in said.err and said.out == ""


SITE = """<lease-workload name="two"><site><resource-types names="CPU Memory"/><nodes><node-set numnodes="2">
<res type="CPU" amount="100"/><res type="Memory" amount="1024"/></node-set></nodes></site><lease-requests>
<lease-request arrival="00:00:00.00"><lease id="a" preemptible="true"><nodes><node-set numnodes="2">
<res type="CPU" amount="100"/><res type="Memory" amount="1024"/></node-set></nodes><start/>
<duration time="01:00:00.00"/></lease></lease-request>
<lease-request arrival="00:10:00.00"><realduration time="00:05:00.00"/><lease id="b" preemptible="false"><nodes>
<node-set numnodes="2"><res type="CPU" amount="100"/></node-set></nodes><start><exact time="00:30:00.00"/></start>
<duration time="00:10:00.00"/></lease></lease-request>
<lease-request arrival="00:31:00.00"><lease id="c" preemptible="false"><nodes>
<node-set numnodes="1"><res type="CPU" amount="100"/></node-set></nodes><start><now/></start>
<duration time="00:10:00.00"/></lease></lease-request></lease-requests></lease-workload>"""


def test_a_site_of_haizea_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site.lwf").write_text(SITE)
    leases = simulate(capsys, tmp_path / "site.lwf", "--format", "haizea")["leases"]
    assert leases == [
        {"id": "a", "state": "DONE", "start": 0.0, "end": 2100.0 + 32.0 + (3600.0 - (1800.0 - 32.0))},
        {"id": "b", "state": "DONE", "start": 1800.0, "end": 2100.0},
        {"id": "c", "state": "REJECTED", "start": None, "end": None},
    ]
    assert main(["leases", "--trace", str(tmp_path / "site.lwf"), "--format", "haizea"]) == 0
    assert "rejected                  c\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("<site>", "<place>", "mismatched tag"),
        (
            '<lease-workload name="two">',
            '<!DOCTYPE a [<!ENTITY x "y">]><lease-workload name="two">',
            "no document type",
        ),
        ('arrival="00:10:00.00"', 'arrival="soon"', "'soon' is not a time like 01:30:00.00"),
        ('numnodes="1"', 'numnodes="1000000000"', "numnodes 1000000000 is not from 1 to 100,000"),
        ('type="CPU" amount="100"/><res', 'type="GPU" amount="100"/><res', "the site has no resource GPU"),
        ('amount="1024"', 'amount="inf"', "an amount of a resource is not a number of 0 or more"),
        ('<lease id="c"', '<lease id="a"', "two leases have the same id"),
        ("<start><now/></start>", "<start><now/></start><nodes/>", ""),
    ],
)
def test_a_bad_site_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, fault: str
) -> None:
    (tmp_path / "site.lwf").write_text(SITE.replace(old, new))
    code = main(["leases", "--trace", str(tmp_path / "site.lwf"), "--format", "haizea"])
    assert (code, fault in capsys.readouterr().err) == (2 if fault else 0, True)


@needs_data
@pytest.mark.parametrize(
    ("model", "slowdown"),
    [
        pytest.param("easy", 121.92, marks=pytest.mark.long),
        ("easy-sjbf", 90.29),
        pytest.param("easy-sjbf-clairvoyant", 63.71, marks=pytest.mark.long),
    ],
)
def test_the_models_of_the_literature_give_the_known_slowdowns_on_kth_sp2(model: str, slowdown: float) -> None:
    assert replay(read_swf(KTH), 100, model).average_bounded_slowdown == pytest.approx(slowdown, abs=0.01)


@needs_data
def test_nothing_is_decided_by_what_nobody_knows_yet() -> None:
    """All run times that aren't over at a moment are drawn anew: no start up to that moment changes."""
    jobs = read_swf(KTH)[:3000]
    whole = replay(jobs, 100, "weft")
    moment = jobs[1800].arrival
    chance = random.Random(7)

    def redraw(job: Job) -> Job:
        if whole.starts[job.id] + job.run <= moment:
            return job
        least = max(1.0, moment - whole.starts[job.id] + 1)  # it still runs at that moment
        return msgspec.structs.replace(job, run=min(job.requested, least + chance.random() * job.requested))

    other = replay([redraw(job) for job in jobs], 100, "weft")
    early = [job.id for job in jobs if whole.starts[job.id] <= moment]
    assert len(early) > 1500
    assert [other.starts[one] for one in early] == [whole.starts[one] for one in early]
    assert other.starts != whole.starts


@needs_data
def test_no_processor_is_given_twice() -> None:
    jobs = read_swf(KTH)[:4000]
    starts = replay(jobs, 100, "weft").starts
    changes = sorted(
        [(starts[job.id], 1, job.processors) for job in jobs]
        + [(starts[job.id] + job.run, 0, -job.processors) for job in jobs]
    )
    used, most = 0, 0
    for _, _, amount in changes:
        used += amount
        most = max(most, used)
    assert most == 100 and all(starts[job.id] >= job.arrival for job in jobs)
