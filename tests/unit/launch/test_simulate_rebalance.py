"""weft simulate rebalance: clusters from files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from weft.launch.placement.simulate import main

DATA = Path(os.environ.get("WEFT_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")) / "hbal"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"no clusters in {DATA}: set WEFT_DATA")


def simulate(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert main(["rebalance", *map(str, argv), "-o", "json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@needs_data
@pytest.mark.parametrize(("moves", "score"), [(1, 51.00647), (5, 49.99940), (40, 41.79486), (100, 28.93620)])
def test_hbals_score_is_reached_at_equal_moves(capsys: pytest.CaptureFixture[str], moves: int, score: float) -> None:
    answer = simulate(capsys, "--cluster", DATA / "hbal-40-400.data.gz", "--moves", moves, "--seconds", 0)
    assert round(answer["score_before"], 5) == 51.26566
    assert round(answer["score_after"], 5) == score
    assert len(answer["moves"]) == moves and set(answer["moves"][0]) == {"workload", "from", "to", "bytes", "score"}


@needs_data
def test_exchanging_moves_makes_the_score_better(capsys: pytest.CaptureFixture[str]) -> None:
    answer = simulate(capsys, "--cluster", DATA / "hbal-40-400.data.gz", "--moves", 100, "--seconds", 30)
    assert round(answer["score_after"], 5) <= 28.93426 and len(answer["moves"]) == 100


def test_a_file_that_is_missing_or_broken_is_refused_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name in ("missing.json", "broken.json"):
        assert main(["rebalance", "--cluster", str(tmp_path / name), "--format", "json"]) != 0
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 2 and name in said[0] and "docs/reference/simulate.md" in said[1]


def ganeti(*, nodes: list[str], guests: list[str]) -> str:
    policy = "|4096,2,51200,1,1,1|128,1,1024,1,1,1|ext|4.0|32.0"
    return "\n".join(["g1|u1|preferred||", "", *nodes, "", *guests, "", "", policy, ""])


def node(name: str, free: int, role: str = "N") -> str:
    return f"{name}|16384|0|{free}|100000|100000|8|{role}|u1|1||N|0|1|1.0"


def guest(name: str, at: str, template: str = "ext", balanced: str = "Y", memory: int = 1024) -> str:
    return f"{name}|{memory}|1000|1|running|{balanced}|{at}||{template}||1|1000|N"


def test_guests_leave_an_offline_node_and_those_with_disks_of_their_own_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.data"
    guests = [guest("a", "n1"), guest("b", "n1", "plain"), guest("c", "n1", balanced="N"), guest("d", "n2")]
    file.write_text(ganeti(nodes=[node("n1", 12000, "Y"), node("n2", 15000), node("n3", 16000)], guests=guests))
    answer = simulate(capsys, "--cluster", file, "--moves", 9)
    assert [(move["workload"], move["from"], move["to"]) for move in answer["moves"]] == [("a", "n1", "n3")]


def test_no_node_gets_more_memory_or_cores_than_the_policy_lets_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.data"
    guests = [guest(f"g{number}", "n1") for number in range(12)]
    file.write_text(ganeti(nodes=[node("n1", 4096), node("n2", 2048)], guests=guests))
    assert len(simulate(capsys, "--cluster", file, "--moves", 9)["moves"]) == 2


def cluster(**changes: Any) -> dict[str, Any]:
    nodes = [{"name": name, "cpu": 16, "memory": "64G"} for name in ("n1", "n2", "n3")]
    workloads = [{"name": f"w{i}", "node": "n1", "cpu": 2, "memory": "4G"} for i in range(6)]
    return {"nodes": nodes, "workloads": workloads, **changes}


def test_a_cluster_in_json_is_rebalanced_by_what_its_guests_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.json"
    busy = cluster()
    for number, one in enumerate(busy["workloads"]):
        one["used"] = {"cpu": 2.0 if number == 3 else 0.01, "memory": "100M"}
        one["node"] = ("n1", "n2", "n3")[number // 2]
    busy["workloads"][2]["used"]["cpu"] = 2.0
    file.write_text(json.dumps(busy))
    answer = simulate(capsys, "--cluster", file, "--format", "json", "--moves", 1)
    assert [move["workload"] for move in answer["moves"]] == ["w2"]
    assert answer["moves"][0]["from"] == "n2"


def test_talkers_in_json_come_together_unless_a_node_is_cordoned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.json"
    talk = cluster(traffic=[{"between": ["w0", "w5"], "bytes_per_second": 1e6}])
    talk["workloads"] = [{**one, "node": "n1" if i < 5 else "n2"} for i, one in enumerate(talk["workloads"])]
    talk["workloads"][0]["mobile"] = False
    for i in range(1, 5):
        talk["workloads"][i]["mobile"] = False
    file.write_text(json.dumps(talk))
    moves = simulate(capsys, "--cluster", file, "--format", "json")["moves"]
    assert [(move["workload"], move["to"]) for move in moves] == [("w5", "n1")]
    talk["nodes"][0]["cordoned"] = True
    file.write_text(json.dumps(talk))
    assert simulate(capsys, "--cluster", file, "--format", "json")["moves"] == []


@pytest.mark.parametrize(
    ("form", "text", "words"),
    [
        ("ganeti", "nothing", "of 5 blocks"),
        ("ganeti", ganeti(nodes=[node("n1", 1)], guests=[guest("a", "n9")]), "n9"),
        ("ganeti", ganeti(nodes=["n1|x"], guests=[]), "columns"),
        ("ganeti", ganeti(nodes=[node("n1", 1).replace("16384", "many")], guests=[]), "not a number"),
        ("ganeti", ganeti(nodes=[node("n1", 1).replace("16384", "1e300")], guests=[]), "too large"),
        ("json", "{", "not valid JSON"),
        ("json", json.dumps(cluster(nodes=[])), "no node"),
        ("json", json.dumps(cluster(traffic=[{"between": ["w0", "zz"], "bytes_per_second": 1}])), "'zz'"),
        ("json", json.dumps(cluster(pods=[])), "pods"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, text: str, words: str
) -> None:
    file = tmp_path / "cluster"
    file.write_text(text)
    assert main(["rebalance", "--cluster", str(file), "--format", form]) != 0
    assert words in capsys.readouterr().err


def test_an_error_is_json_only_where_output_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "empty"
    file.touch()
    words = ["rebalance", "--cluster", str(file), "--format", "json"]
    assert main(words) != 0 and capsys.readouterr().err.startswith("error: ")
    assert main([*words, "-o", "json"]) != 0 and capsys.readouterr().err.startswith("{")
