"""weft simulate placement: the scheduler on files."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from weft.launch.placement.simulate import main
from weft.scheduler.own_policies import registry as own_policies

DATA = Path(os.environ.get("WEFT_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")) / "openb"
NODES = "name,cpu,memory,zone,labels\na,8,32G,east,disk=nvme\nb,8,32G,west,\nc,4,8G,west,\n"


def simulate(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert main(["placement", *map(str, argv), "-o", "json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def write(folder: Path, nodes: str, workloads: str) -> list[object]:
    (folder / "nodes.csv").write_text(nodes)
    (folder / "workloads.csv").write_text(workloads)
    return ["--nodes", folder / "nodes.csv", "--workloads", folder / "workloads.csv"]


def test_the_answer_has_the_promised_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path, NODES, "name,cpu,memory\nw1,4,8G\nw2,4,8G\nw3,400,8G\n")
    answer = simulate(capsys, *files, "--strategy", "best-fit", "--seed", 7)
    assert list(answer) == [
        *("checkpoints", "placed", "rejected", "placements_per_second", "decision_ms", "nodes_used", "strategy", "seed")
    ]
    assert (answer["checkpoints"], answer["placed"], answer["strategy"], answer["seed"]) == ([], 2, "best_fit", 7)
    assert answer["rejected"] == {"insufficientResources": 1}
    assert set(answer["decision_ms"]) == {"p50", "p99"}
    assert answer["placements_per_second"] > 0


def test_yaml_says_what_json_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path, NODES, "name,cpu,memory\nw1,4,8G\n")
    assert main(["placement", *map(str, files), "-o", "yaml"]) == 0
    answer = yaml.safe_load(capsys.readouterr().out)
    assert list(answer) == list(simulate(capsys, *files))


def test_what_has_a_node_already_takes_its_room_and_is_not_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path, NODES, "name,cpu,memory,node\nold,8,1G,a\nolder,8,1G,b\nnew,4,1G,\nnewer,4,1G,\n")
    answer = simulate(capsys, *files)
    assert (answer["placed"], answer["rejected"], answer["nodes_used"]) == (1, {"insufficientResources": 1}, 3)


def test_gpus_are_devices_and_a_share_is_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = "name,cpu,memory,gpus,gpu_model\na,64,256G,2,T4\nb,64,256G,2,A100\n"
    half = "name,cpu,memory,gpus,gpu_share,gpu_model\n" + "".join(f"h{i},1,1G,1,0.6,T4\n" for i in range(3))
    answer = simulate(capsys, *write(tmp_path, nodes, half + "w1,1,1G,2,,\nw2,1,1G,1,,T4|V100\n"))
    # Two of the shares have a T4 each, the third no device with 0.6 free; both A100 go to w1.
    assert (answer["placed"], answer["rejected"]) == (3, {"insufficientResources": 2})
    assert answer["checkpoints"][0]["allocation_percent"]["gpu"] == 80.0


def test_taints_overcommitment_and_declared_amounts_count_as_on_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = "name,cpu,memory,taints,overcommit,resources\na,4,32G,,cpu=2;memory=150%,hugepages=4G\nb,64,256G,tenant=blue,,\n"
    rows = "cpu,memory,tolerations,resources\n4,24G,,\n4,24G,,hugepages=4G\n1,1M,,\n64,1G,tenant,\n"
    answer = simulate(capsys, *write(tmp_path, nodes, rows))
    assert (answer["placed"], answer["rejected"], answer["nodes_used"]) == (3, {"insufficientResources": 1}, 2)


def test_constraints_and_preferences_say_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = 'name,cpu,constraint,prefer\nd,1,"disk=nvme,memory>=16G",\ne,1,,zone=west;weight=1|memory>=16G\nf,1,exists(tpm),\n'
    answer = simulate(capsys, *write(tmp_path, NODES, rows), "--strategy", "best_fit")
    assert (answer["placed"], answer["rejected"], answer["nodes_used"]) == (2, {"noAvailableAgents": 1}, 2)


def test_groups_are_apart_and_spread_and_data_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apart = "name,cpu,anti_affinity_groups,spread\n" + "".join(f"w{n},1,web,\n" for n in range(4))
    answer = simulate(capsys, *write(tmp_path, NODES, apart), "--strategy", "best_fit")
    assert (answer["placed"], answer["rejected"], answer["nodes_used"]) == (3, {"noAvailableAgents": 1}, 3)
    spread = "name,cpu,anti_affinity_groups,spread\n" + "".join(f"w{n},3,web:preferred,zone\n" for n in range(5))
    answer = simulate(capsys, *write(tmp_path, NODES, spread))  # east takes two, so west no more than three
    assert (answer["placed"], answer["rejected"]) == (5, {})
    answer = simulate(capsys, *write(tmp_path, NODES, spread + "w5,3,web:preferred,zone\n"))
    assert (answer["placed"], answer["nodes_used"]) == (5, 3)
    near = "name,cpu,affinity_groups\n" + "".join(f"w{n},1,pair\n" for n in range(9))
    answer = simulate(capsys, *write(tmp_path, NODES, near))
    assert (answer["placed"], answer["nodes_used"]) == (8, 1)
    held = "name,cpu,memory,data\na,8,32G,\nb,2,32G,pool:x;pool:y\n"
    reads = "name,cpu,data_hints,storage_locality\n" + "".join(f"w{n},1,pool:y,required\n" for n in range(3))
    answer = simulate(capsys, *write(tmp_path, held, reads))
    assert (answer["placed"], answer["nodes_used"]) == (2, 1)


@pytest.mark.parametrize(
    ("nodes", "workloads", "told"),
    [
        (NODES, "name,spread\nw,zone\n", "workloads.csv:2: column spread: needs an anti-affinity group"),
        (NODES, "name,affinity_groups\nw,a;a\n", "workloads.csv:2: column affinity_groups: group a is named twice"),
        (NODES, "name,storage_locality\nw,local\n", "workloads.csv:2: column storage_locality: 'local' must be"),
        ("name,cpu\na,8\n", "name\nw\n", "nodes.csv:1: missing column memory"),
        ("name,cpu,memory\na,8,32X\n", "name\nw\n", "nodes.csv:2: column memory: 'X' is not a unit of size"),
        (NODES, "name,cpu\nw,1\nv,none\n", "workloads.csv:3: column cpu: 'none' is not a number of cores"),
        (NODES, "name,node\nw,z\n", "workloads.csv:2: column node: unknown node z"),
        (NODES, "name,gpus,gpu_share\nw,2,0.5\n", "workloads.csv:2: column gpu_share: 0.5 of 2 GPUs"),
        (NODES, "name,constraint\nw,zone=\n", "workloads.csv:2: column constraint"),
        (
            NODES,
            "name,constraint\nw,@fast\n",
            "column constraint: character 1: a constraint can't name another constraint",
        ),
        (
            NODES,
            'name,constraint\nw,"zone=a,zone=b"\n',
            "column constraint: no node can meet both zone=a (character 1)",
        ),
        (NODES, "name,prefer\nw,zone=a;weight=7\n", "column prefer: weight '7' is not a number from 0 to 1"),
        (NODES + "a,1,1G,,\n", "name\nw\n", "nodes.csv:5: column name: node a appears twice"),
        (NODES, "", "workloads.csv: the file is empty"),
        (NODES, "name;cpu\nw;1\n", "workloads.csv:1: missing column cpu"),
        (
            NODES,
            "name,strategy\nw,@mine\n",
            "workloads.csv:2: column strategy: @mine is a placement policy",
        ),
        (NODES, "name,gpus\nw,99999999999999999999\n", "workloads.csv:2: column gpus"),
        (NODES, 'name,cpu\n"w,1\n', "workloads.csv:2: unexpected end of data"),
        (NODES, "name,gpu_model\nw,T4\n", "workloads.csv:2: column gpu_model: the number of GPUs is missing"),
        (NODES, "name,gpu_share\nw,150%%\n", "workloads.csv:2: column gpu_share: '150%%' is not a ratio"),
        (NODES, "name,gpu_share\nw,150%\n", "workloads.csv:2: column gpu_share: 1.5 of 1 GPUs"),
        (NODES, "name,tolerations\nw,=x\n", "workloads.csv:2: column tolerations: '=x' is not a taint"),
        (NODES, "name,affinity_groups\nw,A B\n", "workloads.csv:2: column affinity_groups: 'A B' is not a valid name"),
        (NODES, "cpu_milli,num_gpu\n1,1\n", "workloads.csv:1: missing column cpu"),
        ("name,cpu,memory,taints\na,1,1G,==\n", "name\nw\n", "nodes.csv:2: column taints: '==' is not a taint"),
        (
            "name,cpu,memory,type\na,1,1G,big\n",
            "name\nw\n",
            "nodes.csv:2: column type: 'big' is not one of cloud, edge",
        ),
    ],
)
def test_an_error_names_file_line_and_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nodes: str, workloads: str, told: str
) -> None:
    assert main(["placement", *map(str, write(tmp_path, nodes, workloads)), "-o", "json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in json.loads(captured.err)["message"]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("none.csv", None, 3), ("x.csv.gz", b"\x1f\x8b\x08broken", 2), ("x.csv", b"name\n\xff\xfe\n", 2), (".", None, 2)],
)
def test_a_file_that_can_not_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, code: int
) -> None:
    files = write(tmp_path, NODES, "name\nw\n")
    files[3] = tmp_path / name
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["placement", *map(str, files)]) == code
    assert str(tmp_path / name) in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        *([], ["placement"], ["placement", "--until", "-1"], ["placement", "--seed", "x"], ["plan"]),
        ["placement", "--nodes", "n.csv", "--workloads", "w.csv", "--plot", "curves.png"],
    ],
)
def test_a_command_line_that_makes_no_sense_ends_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_protocol_asks_until_the_end_on_gpu_nodes_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = "sn,cpu_milli,memory_mib,gpu,model\na,64000,65536,4,T4\nb,64000,65536,0,\n"
    pods = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\np,1000,1024,1,500\nq,1000,1024,0,0\n"
    files = write(tmp_path, nodes, pods)
    answer = simulate(capsys, *files, "--format", "openb", "--until", "1.3", "--seed", 3, "--plot", tmp_path / "p.svg")
    assert [point["arrived_percent"] for point in answer["checkpoints"]] == [80, 90, 95, 100, 130]
    assert answer["checkpoints"][3]["allocation_percent"]["gpu"] == 100.0
    assert (answer["strategy"], answer["nodes_used"]) == ("fragmentation", 1)
    assert sum(answer["rejected"].values()) == 3  # 1.3 · 4 GPUs by halves are 11, of which 8 fit
    assert "<polyline" in (tmp_path / "p.svg").read_text()
    (tmp_path / "p.svg").write_text("an earlier picture")
    again = ["placement", *map(str, files), "--format", "openb", "--plot", str(tmp_path / "p.svg")]
    assert main(again) == 2 and "--force to replace it" in capsys.readouterr().err
    assert (tmp_path / "p.svg").read_text() == "an earlier picture"
    assert main([*again, "--force"]) == 0 and "<polyline" in (tmp_path / "p.svg").read_text()


def test_repacking_counts_the_nodes_that_are_used_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = "name,cpu,memory\n" + "".join(f"n{i},8,32G\n" for i in range(6))
    files = write(tmp_path, nodes, "cpu,memory\n" + "4,8G\n" * 6)
    spread = simulate(capsys, *files, "--strategy", "least-loaded")
    packed = simulate(capsys, *files, "--strategy", "least-loaded", "--repack")
    assert (spread["nodes_used"], packed["nodes_used"], packed["placed"]) == (6, 3, 6)


def test_until_needs_a_workload_that_brings_it_nearer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path, "name,cpu,memory,gpus\na,8,32G,2\n", "gpus,node\n1,a\n,\n")
    assert main(["placement", *map(str, files), "--until", "1"]) == 2
    assert "no workload to be placed requests a GPU" in capsys.readouterr().err


@pytest.mark.skipif(not DATA.exists(), reason="the openb trace is not here (WEFT_DATA)")
def test_fragmentation_packs_a_part_of_the_trace_better_than_fgd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every fourth node and pod of the mix that constrains models; the benchmark has all of all mixes."""
    files: list[object] = []
    for option, name in (("--nodes", "openb_node_list_all_node"), ("--workloads", "openb_pod_list_gpuspec33")):
        with gzip.open(DATA / f"{name}.csv.gz", "rt") as source, gzip.open(tmp_path / f"{name}.csv.gz", "wt") as part:
            rows = list(csv.reader(source))
            csv.writer(part).writerows([rows[0], *rows[1::4]])
        files += [option, tmp_path / f"{name}.csv.gz"]
    ours, fgd, best_fit = (
        simulate(capsys, *files, "--format", "openb", "--until", 1, "--seed", 1, "--strategy", strategy)["checkpoints"][
            -1
        ]
        for strategy in ("fragmentation", "fgd", "best_fit")
    )
    gpu = [state["allocation_percent"]["gpu"] for state in (ours, fgd, best_fit)]
    assert gpu[0] > gpu[1] + 2 > gpu[2] + 2
    assert ours["fragmented_gpu_percent"] < fgd["fragmented_gpu_percent"] < best_fit["fragmented_gpu_percent"]


def test_a_policy_of_ones_own_decides_and_one_that_fails_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_policies, "TIMEOUT_SECONDS", 20.0)  # a loaded machine is not what is tried here
    files = write(tmp_path, NODES, "name,cpu,memory\nw1,4,1G\nw2,4,1G\n")
    mine = tmp_path / "mine.py"
    mine.write_text("def score(table, request, occasion):\n    return 100.0 * (table.capacity[0] < 8000)\n")
    answer = simulate(capsys, *files, "--strategy", f"file:{mine}")
    assert (answer["placed"], answer["nodes_used"], answer["strategy"]) == (2, 2, f"file:{mine}")
    mine.write_text("def score(table, request, occasion):\n    return [occasion.nonsense]\n")
    assert main(["placement", *map(str, files), "--strategy", f"file:{mine}"]) == 0
    assert "was skipped: raised: AttributeError" in capsys.readouterr().err
    mine.unlink()
    assert main(["placement", *map(str, files), "--strategy", f"file:{mine}"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_placement_policy_is_not_known_to_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path, NODES, "name,strategy\nw1,@gold\n")
    assert main(["placement", *map(str, files)]) == 2
    assert "@gold is a placement policy" in capsys.readouterr().err
