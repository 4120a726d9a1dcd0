"""What a newcomer does with a cluster, on real QEMU."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster, until
from tests.unit.controllers.image.hostile_site import hostile_site

pytestmark = pytest.mark.host
Gone = Callable[[str], str]


def test_three_nodes_are_ready_and_hello_runs(cluster: Cluster) -> None:
    nodes = cluster.json("node", "list")["items"]
    assert [n["name"] for n in nodes] == ["n1", "n2", "n3"]
    assert {n["status"]["phase"] for n in nodes} == {"Ready"}
    assert cluster.vm("hello")["status"]["phase"] == "Running"
    assert "vm/hello" in cluster.ok("vm", "list", "-o", "name").split()


def test_exec_keeps_outputs_apart_and_passes_the_exit_code(cluster: Cluster) -> None:
    done = cluster.run("vm", "exec", "hello", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_exec_passes_arguments_unchanged(cluster: Cluster) -> None:
    words = ["a b", "", "$HOME", "*", "'q'", '"', "ü", "--help", "\\n"]
    out = cluster.run("vm", "exec", "hello", "--", "printf", "%s|", *words).stdout.decode()
    assert out == "".join(w + "|" for w in words)


@pytest.mark.long
def test_exec_is_binary_clean_for_ten_megabytes_in_both_directions(cluster: Cluster) -> None:
    blob = os.urandom(10_000_000)
    done = cluster.run(
        "vm", "exec", "hello", "--", "sh", "-c", "cat > /tmp/blob; sha256sum /tmp/blob | cut -c1-64", stdin=blob
    )
    assert done.stdout.decode().strip() == hashlib.sha256(blob).hexdigest(), done.stderr
    assert cluster.run("vm", "exec", "hello", "--", "cat", "/tmp/blob").stdout == blob


@pytest.mark.long
def test_tmp_holds_110_megabytes_in_a_256_megabyte_guest(cluster: Cluster, gone: Gone) -> None:
    cluster.ok("vm", "create", gone("roomy"), "--image", "tiny", "--memory", "256M")
    cluster.ok("vm", "exec", "roomy", "--", "dd", "if=/dev/zero", "of=/tmp/big", "bs=1M", "count=110")
    assert cluster.ok("vm", "exec", "roomy", "--", "stat", "-c", "%s", "/tmp/big").strip() == str(110 * 2**20)


def test_a_guest_reaches_the_outside_and_stop_and_start_keep_its_disk(cluster: Cluster, gone: Gone) -> None:
    """'Outside' is a namespace behind the host, on a network of its own."""
    name, link = f"wt{os.getpid()}", f"wt{os.getpid() % 10**6}"
    subnet = f"198.18.{os.getpid() % 256}"  # another run of these tests may have one of its own
    try:
        for line in (
            f"ip netns add {name}",
            f"ip link add {link} type veth peer name eth0 netns {name}",
            f"ip addr add {subnet}.1/30 dev {link}",
            f"ip link set {link} up",
            f"ip -n {name} addr add {subnet}.2/30 dev eth0",
            f"ip -n {name} link set eth0 up",
            f"ip -n {name} link set lo up",
        ):
            subprocess.run(line.split(), check=True)
        cluster.ok("vm", "create", gone("inside"), "--image", "tiny", "--memory", "128M")
        ping = ("vm", "exec", "inside", "--", "ping", "-c", "1", "-W", "5", f"{subnet}.2")
        until(lambda: cluster.run(*ping).returncode == 0)
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", link], capture_output=True)
    cluster.ok("vm", "exec", "inside", "--", "sh", "-c", "echo kept > /tmp/kept; sync")
    cluster.ok("vm", "stop", "inside")
    assert cluster.vm("inside")["status"]["phase"] == "Stopped"
    cluster.ok("vm", "start", "inside")
    assert cluster.ok("vm", "exec", "inside", "--", "cat", "/tmp/kept") == "kept\n"


def test_a_vm_without_a_screen_is_refused_before_an_address_is_printed(cluster: Cluster) -> None:
    for how in ([], ["--url"]):
        done = cluster.run("vm", "console", "hello", "--vnc", *how)
        assert done.returncode != 0 and done.stdout == b"" and b"vm/hello has no screen" in done.stderr, done


def test_four_at_once_and_background_children_do_not_hold_exec(cluster: Cluster) -> None:
    results: dict[int, bytes] = {}

    def one(number: int) -> None:
        results[number] = cluster.run(
            "vm", "exec", "hello", "--", "sh", "-c", f"sleep 300 & sleep 1; echo {number}"
        ).stdout

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)  # their children sleep for longer
    assert results == {n: f"{n}\n".encode() for n in range(4)}
    cluster.run("vm", "exec", "hello", "--", "killall", "sleep")


@pytest.mark.long
def test_guests_on_different_nodes_reach_each_other_by_name_and_two_networks_do_not(
    cluster: Cluster, gone: Gone
) -> None:
    cluster.ok("network", "create", "blue", "--cidr", "10.20.0.0/24")
    cluster.ok("network", "create", "red", "--cidr", "10.20.0.0/24")
    for name, network, node in (("b1", "blue", "n1"), ("b2", "blue:10.20.0.40,default", "n2"), ("r1", "red", "n3")):
        cluster.ok(
            "vm",
            "create",
            gone(name),
            "--image",
            "tiny",
            "--memory",
            "128M",
            "--network",
            network,
            "--node",
            node,
            "--detach",
        )
    for name in ("b1", "b2", "r1"):
        cluster.ok("wait", f"vm/{name}", "--for=phase=Running", "--timeout", "120s")
    assert cluster.vm("b1")["status"]["node"] == "n1"
    ping = "for try in $(seq 40); do ping -c 1 -W 5 {} && exit; sleep 1; done"  # names spread from node to node
    assert "1 packets received" in cluster.ok("vm", "exec", "b1", "--", "sh", "-c", ping.format("b2"))
    address = cluster.vm("b2")["status"]["address"]
    assert address == "10.20.0.40"  # of its own choice; and it has a NIC in another network, with that one's names
    assert "1 packets received" in cluster.ok("vm", "exec", "b2", "--", "sh", "-c", ping.format("hello.default"))
    assert cluster.ok("vm", "exec", "b2", "--", "ip", "route", "show", "default").split()[1:5] == [
        *("via", "10.20.0.1", "dev", "eth0")
    ]
    assert cluster.run("vm", "exec", "r1", "--", "ping", "-c", "1", "-W", "2", address).returncode != 0
    hello = cluster.vm("hello")["status"]["address"]  # in a third network: refused, not sent to whatever is outside
    connect = f"for try in $(seq 40); do nc -w 2 {hello} 22 </dev/null 2>&1 | grep unreachable && exit; sleep 1; done"
    assert "unreachable" in cluster.ok("vm", "exec", "b1", "--", "sh", "-c", connect)
    for name in ("b1", "b2", "r1"):
        cluster.ok("vm", "delete", name, "--yes")
    cluster.ok("network", "delete", "blue", "--yes")
    cluster.ok("network", "delete", "red", "--yes")


def test_suspend_and_resume_survive_kill_9_of_agent(cluster: Cluster) -> None:
    before = cluster.vm("hello")["status"]
    cluster.ok(
        "vm", "exec", "hello", "--", "sh", "-c", "echo kept > /dev/shm/x 2>/dev/null || echo kept > /tmp/x; sync"
    )
    cluster.ok("vm", "suspend", "hello")
    assert cluster.vm("hello")["status"]["phase"] == "Suspended"
    assert not cluster.pids("-name", "guest=hello")
    for pid in cluster.pids("weft agent " + before["node"]):
        os.kill(pid, 9)
    cluster.ok("vm", "resume", "hello")
    after = cluster.vm("hello")["status"]
    assert after["phase"] == "Running"
    assert after["boot_id"] == before["boot_id"]


@pytest.mark.long
def test_a_published_port_answers_on_the_machine_and_is_refused_a_second_time(cluster: Cluster, gone: Gone) -> None:
    port = cluster.free_port()
    script = "#!/bin/sh\nmkdir -p /www; echo published > /www/index.html; httpd -p 80 -h /www\n"
    (cluster.folder / "web.sh").write_text(script)
    cluster.ok(
        "vm",
        "create",
        gone("pub"),
        "--image",
        "tiny",
        "--memory",
        "128M",
        "--publish",
        f"{port}:80",
        "--user-data",
        "web.sh",
    )
    deadline = time.monotonic() + 60
    body = b""
    while time.monotonic() < deadline and not body:
        try:
            body = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
        except OSError:
            time.sleep(0.3)
    assert body == b"published\n"
    assert str(port) in cluster.fails(5, "vm", "create", "pub2", "--image", "tiny", "--publish", f"{port}:80")
    assert cluster.run("get", "vm/pub2").returncode == 3


def test_what_fits_nowhere_says_so_and_waits(cluster: Cluster, gone: Gone) -> None:
    said = cluster.fails(6, "vm", "create", gone("big"), "--image", "tiny", "--memory", "900G")
    assert "insufficientResources" in said and "nearest" in said and "n1" in said
    assert cluster.vm("big")["status"]["phase"] == "Pending"
    condition = next(c for c in cluster.vm("big")["conditions"] if c["type"] == "Placed")
    assert (condition["status"], condition["reason"]) == ("False", "insufficientResources")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["vm", "create", "e1", "--image", "tny"], 3, ["tny"]),
        (["vm", "create", "e1", "--image", "tiny", "--memroy", "1G"], 2, ["--memory"]),
        (["vm", "create", "e1", "--image", "tiny", "--memory", "-5G"], 2, ["memory", "negative"]),
        (["vm", "create", "E_1", "--image", "tiny"], 2, ["name"]),
        (["vm", "create", "hello", "--image", "tiny"], 5, ["hello"]),
        (["vm", "create", "e1", "--image", "tiny", "--strategy", "magic"], 2, ["invalidStrategy"]),
        (["vm", "create", "e1", "--image", "tiny", "--network", "nowhere"], 3, ["nowhere"]),
        (["get", "vm/nobody"], 3, ['VM "nobody" not found']),
        (["vm", "delete", "hello"], 2, ["--yes"]),
        (["vm", "hold", "hello"], 5, ["stop"]),
    ],
)
def test_bad_input_gets_a_clear_error_and_leaves_nothing(
    cluster: Cluster, argv: list[str], code: int, words: list[str]
) -> None:
    said = cluster.fails(code, *argv)
    for word in words:
        assert word in said, said
    assert cluster.run("get", "vm/e1").returncode == 3


def test_an_image_that_cannot_be_had_or_is_none_says_why_and_is_not_kept(cluster: Cluster) -> None:
    (cluster.folder / "page.html").write_text("<html>not found</html>")
    with hostile_site() as site:
        for url, words in {
            f"{site.url}/less": "ended after 2048 of 100000 bytes",
            f"{site.url}/ring": "redirect",
            f"{site.url}/none": "answered 404",
            "file:///etc/shadow": "is not readable for everybody",
            str(cluster.folder / "page.html"): "neither qcow2, nor a raw disk, nor a bundle",
        }.items():
            assert words in cluster.fails(1, "image", "add", "bad", url)
            assert cluster.run("get", "image/bad").returncode == 3
    assert not list(cluster.state.glob("server/images/.fetch-*"))


def test_a_wrong_checksum_says_sha256_and_leaves_no_image(cluster: Cluster) -> None:
    blob = cluster.folder / "blob.raw"
    blob.write_bytes(b"\0" * 2**20)
    said = cluster.fails(1, "image", "add", "wrong", str(blob), "--sha256", "0" * 64)
    assert "sha256" in said
    assert cluster.run("get", "image/wrong").returncode == 3


def test_two_ups_at_once_are_told_apart(cluster: Cluster) -> None:
    with (cluster.state / "up.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = cluster.local("up")
    assert second.returncode == 1
    assert "another make up" in second.stderr


def test_a_deleted_hello_stays_deleted(cluster: Cluster) -> None:
    cluster.ok("vm", "delete", "hello", "--yes")
    try:
        cluster.up()
        assert cluster.run("get", "vm/hello").returncode == 3
    finally:
        cluster.ok("vm", "create", "hello", "--image", "tiny", "--memory", "128M")


@pytest.mark.long
def test_a_trace_says_what_a_create_and_a_migration_took_their_time_for(cluster: Cluster, gone: Gone) -> None:
    def read() -> dict[str, str]:
        """The process of each span, by name, of the newest trace."""
        done = cluster.run("trace", "vm/traced", "-o", "json")
        found = json.loads(done.stdout)["resourceSpans"] if done.returncode == 0 else []
        return {
            span["name"]: each["resource"]["attributes"][0]["value"]["stringValue"].removeprefix("weft/")
            for each in found
            for span in each["scopeSpans"][0]["spans"]
        }

    cluster.ok("vm", "create", gone("traced"), "--image", "tiny", "--memory", "128M", "--node", "n1")
    until(lambda: {"spawn qemu", "qemu answers", "boot", "ready: Answers", "scheduler", "commit"} <= read().keys())
    assert read()["spawn qemu"] == "node/n1"
    assert "Longest: " in cluster.ok("trace", "vm/traced")
    cluster.ok("vm", "set", "traced", "--node", "")
    cluster.ok("vm", "migrate", "traced", "--to", "n2", "--timeout", "90s")
    until(lambda: {"send", "migrating", "guest paused", "waiting", "open"} <= read().keys())
    places = read()
    assert (places["guest paused"], places["waiting"]) == ("node/n1", "node/n2")
