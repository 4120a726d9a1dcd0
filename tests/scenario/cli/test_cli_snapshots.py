"""What the command says about snapshots, restores, twins and warm images that can't be, against a real server and agents."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.cli_lab import Fabric, Said, start_fabric

from weft.cli.backup import project_restore
from weft.trust.seal import unseal

# Typed wrongly: exit code, what is said, and what to do in its place.
WRONG = (
    ("vm snapshot", 2, "the name is missing", "give NAME"),
    ("vm snapshot nope", 3, 'VM "nope" not found', "weft vm list"),
    ("vm snapshot web s2", 2, "give one VM", "--name s2"),
    ("vm snapshot web db --memory", 2, "give one VM", "--name db"),
    ("vm snapshot container/web", 2, "container/web is not a VM", "weft vm snapshot --help"),
    ("vm snapshot web --name S_1", 2, "--name 'S_1' is not a valid name", "use a-z, 0-9 and -"),
    ("vm snapshot web --name ''", 2, "--name must not be empty", "leave --name out"),
    ("vm snapshot web --nme x", 2, "no such option: --nme", "did you mean --name?"),
    ("vm snapshot web --timeout 5x", 2, "'5x' is not a duration", "write a duration like 30s"),
    ("vm snapshot idle --memory", 5, "vm/idle is stopped, so it has no memory to keep", "without memory"),
    ("vm snapshot web --keep 3", 2, "--keep is about snapshots that are taken regularly", "add --every 1h"),
    ("vm snapshot web --every 1h --name a", 2, "--every: such snapshots are named by the time", "leave --name out"),
    ("vm snapshot web --every 5s", 2, "--every: 5s is out of range", "give 1m to 366d"),
    ("vm snapshot web --every 1h --keep 99", 2, "--keep: 99 is out of range", "give 1 to 24"),
    ("vm restore", 2, "the name is missing", "give NAME"),
    ("vm restore web", 2, "--snapshot is missing", "vm/web has no snapshots: weft vm snapshot web takes one"),
    ("vm restore web s1", 2, "give one name", "--snapshot s1"),
    ("vm restore web --snapshot", 2, "option '--snapshot' requires an argument", ""),
    ("vm restore web --snapshot nope", 3, 'snapshot "nope" not found', "weft snapshot list"),
    (
        "vm restore web --snapshot one",
        5,
        "snapshot/one is of vm/gone, not of vm/web",
        "weft restore vm/gone --snapshot one",
    ),
    (
        "vm restore web --snapshot one --new-name ''",
        2,
        "--new-name must not be empty",
        "leave --new-name out",
    ),
    ("vm restore gone --snapshot one", 3, 'VM "gone" not found', "--new-name gone creates it again"),
    ("vm restore gone --snapshot one --new-name WEB", 2, "--new-name 'WEB' is not a valid name", "use a-z, 0-9 and -"),
    ("vm restore gone --snapshot one --new-name x --memory", 5, "snapshot/one", ""),
    ("restore snapshot/one --snapshot one", 2, "snapshot/one is a snapshot already", "leave --snapshot out"),
    (
        "restore image/tiny",
        2,
        "the command takes vm, volume, container and snapshot objects, not image/tiny",
        "weft restore --help",
    ),
    ("restore shop", 3, 'no VM, volume, container or snapshot named "shop"', "KIND/NAME"),
    ("snapshot restore one", 3, 'VM "gone" not found', "--new-name gone creates it again"),
    ("vm clone", 2, "the name of the twin is missing", "weft vm clone NAME NEW-2"),
    ("vm clone web", 2, "the name of the twin is missing", "weft vm clone web web-2"),
    ("clone vm/web", 2, "the name of the twin is missing", "weft vm clone web web-2"),
    ("vm clone web WEB", 2, "--new-name 'WEB' is not a valid name", "use a-z, 0-9 and -"),
    ("vm clone web web", 5, 'VM "web" exists already', "use another name"),
    ("vm clone web a b", 2, "give one VM and the name of its twin", "weft vm clone --help"),
    ("vm clone nope b", 3, 'VM "nope" not found', "weft vm list"),
    ("clone container/x y", 2, "the command takes vm objects, not container/x", "weft clone --help"),
    ("clone web volume/x", 2, "'volume/x' is not a VM's name", "give the twin's name alone"),
    ("snapshot create s --of web", 2, "--of: 'web' is nothing that snapshots are taken of", "write vm/web"),
    ("snapshot create s --of vm/nope", 3, 'VM "nope" not found', "weft vm list"),
    ("snapshot describe nope", 3, 'snapshot "nope" not found', "weft snapshot list"),
    ("snapshot delete one", 2, "deleting snapshot/one without a terminal needs --yes", "weft snapshot delete --help"),
    ("snapshot delete nope --yes", 3, 'snapshot "nope" not found', "weft snapshot list"),
    ("vm delete web --snapshots", 2, "deleting vm/web without a terminal needs --yes", "weft vm delete --help"),
    ("image delete tiny --snapshots", 2, "no such option: --snapshots", ""),
    ("volume snapshot nope", 3, 'volume "nope" not found', "weft volume list"),
    ("volume snapshot fresh", 5, "volume/fresh has no data yet: nothing has used it", "mount it in a container first"),
    ("volume snapshot fresh --keep 3", 2, "--keep is about snapshots that are taken regularly", "add --every 1h"),
    ("volume snapshot fresh --every 5s", 2, "--every: 5s is out of range", "give 1m to 366d"),
    ("volume snapshot fresh --memory", 2, "no such option: --memory", ""),
    ("volume set fresh --encrypted", 2, "can never change", "a new volume with encrypted: true; this one keeps false"),
    ("volume restore fresh", 2, "--snapshot is missing", "weft volume snapshot fresh takes one"),
    ("volume restore fresh --snapshot one", 5, "volume/fresh has no data yet", ""),
    ("container snapshot nope", 3, 'container "nope" not found', "weft container list"),
    ("container restore nope --snapshot one", 5, "snapshot/one is of vm/gone, not of container/nope", ""),
    ("snapshot create s --of volume/fresh --memory", 2, "only snapshots of VMs have one", ""),
    ("image warm", 2, "the name is missing", "give NAME"),
    ("image warm a b", 2, "give one image", "weft image warm --help"),
    ("image warm nope", 3, 'image "nope" not found', "weft image list"),
    ("image warm tiny --memory 1X", 2, "--memory: 'X' is not a unit of size", "write a size like 512M"),
    ("image warm tiny --memory 1M", 2, "--memory: 1 MiB is too little for a machine", "give at least 64M"),
    ("image warm tiny --cpu 4-1", 2, "--cpu: 4-1 is not a range from 1 to 16", "write 1-4"),
    ("image warm tiny --cpu 1-99", 2, "--cpu: 1-99 is not a range from 1 to 16", "write 1-4"),
    ("image warm tiny --cpu many", 2, "--cpu: 'many' is not a range of cores", "write 2, or 1-4"),
    ("image warm tiny --off --cpu 2", 2, "--off with --cpu", "give --off alone"),
    ("vm create x --image tiny --boot hot", 2, "'hot' is not one of 'auto', 'cold', 'warm'", "weft vm create --help"),
)


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with start_fabric() as fabric:
        for name in ("web", "idle", "gone"):
            assert fabric.weft("vm", "create", name, "--image", "tiny").code == 0
        assert fabric.weft("vm", "stop", "idle").code == 0
        assert fabric.weft("volume", "create", "fresh", "--size", "64M").code == 0
        assert fabric.weft("vm", "snapshot", "gone", "--name", "one", "--detach").code == 0
        said = fabric.weft("vm", "delete", "gone", "--yes")
        assert said.code == 0 and "1 snapshot of vm/gone stays" in said.err and "weft snapshot delete one" in said.err
        yield fabric


@pytest.mark.parametrize(("line", "code", "said", "hint"), WRONG, ids=[line for line, *_ in WRONG])
def test_what_cannot_be_names_what_is_wrong_and_what_to_type(
    fabric: Fabric, line: str, code: int, said: str, hint: str
) -> None:
    done = fabric.weft(*shlex.split(line))
    assert (done.code, done.out) == (code, ""), done.err
    assert done.err.startswith("error: ") and said in done.err and hint in done.err, done.err


def test_snapshots_without_a_name_may_be_taken_in_one_second(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "often", "--image", "tiny").code == 0
    done = [fabric.weft("vm", "snapshot", "often", "--detach") for _ in range(4)]
    assert [one.code for one in done] == [0] * 4, done[-1].err
    names = fabric.weft("snapshot", "list", "-o", "name").out
    assert names.count("snapshot/often-") == 4, names
    assert fabric.weft("vm", "delete", "often", "--snapshots").err.count("snapshot/often-") == 4, "all that would go"
    assert fabric.weft("vm", "delete", "often", "--snapshots", "--yes").code == 0


def test_snapshots_of_an_earlier_vm_stay_when_those_of_the_present_one_go(fabric: Fabric) -> None:
    for name in ("first", "second"):
        assert fabric.weft("vm", "create", "twice", "--image", "tiny").code == 0
        assert fabric.weft("vm", "snapshot", "twice", "--name", name, "--detach").code == 0
        fabric.weft("wait", f"snapshot/{name}")
        flags = ["--snapshots"] if name == "second" else []
        done = fabric.weft("vm", "delete", "twice", *flags, "--yes")
        assert done.code == 0, done.err
    assert "1 snapshot of an earlier vm/twice stays" in done.err, done.err
    assert fabric.weft("snapshot", "get", "first").code == 0 and fabric.weft("snapshot", "get", "second").code == 3


def test_a_restore_says_in_every_help_that_it_goes_back_in_place(fabric: Fabric) -> None:
    assert "Go back to it in place" in fabric.weft("snapshot", "--help").out
    for noun in ("vm", "snapshot"):
        assert "Go back to a snapshot in place, or with --new-name" in fabric.weft(noun, "restore", "--help").out


def test_snapshots_are_taken_regularly_until_people_end_that(fabric: Fabric) -> None:
    done = fabric.weft("vm", "snapshot", "web", "--every", "1h", "--keep", "24")
    assert done.code == 0 and "a snapshot every 1h, of which the newest 24 are kept" in done.out + done.err
    ended = fabric.weft("vm", "snapshot", "web", "--every", "0")
    assert ended.code == 0 and "those that it has stay" in ended.out + ended.err


def test_a_pool_that_no_node_offers_is_named(fabric: Fabric, tmp_path: Path) -> None:
    made = fabric.weft("volume", "create", "odd", "--size", "64M", "--pool", "nope")
    assert made.code == 0 and "no node offers pool nope now" in made.err, made.err
    assert "no node offers" not in fabric.weft("volume", "create", "even", "--size", "64M").err
    (tmp_path / "odd.yaml").write_text("{kind: volume, name: odder, spec: {size: 64M, pool: nope}}")
    assert "no node offers pool nope now" in fabric.weft("apply", "-f", str(tmp_path / "odd.yaml")).err


def test_objects_of_a_project_come_back_elsewhere_and_a_repository_is_taken_in_by_its_key(
    fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weft, key = fabric.weft, tmp_path / "safe.key"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "app.py").write_text("def handler(event, context):\n    return event\n")
    for line in (
        "project create shop",
        f"function create echo --code {tmp_path}/code --handler app.handler -p shop --detach",
        "network create blue --cidr 10.77.0.0/24 -p shop",
        "securitygroup create web --ingress tcp:80 -p shop",
        "secret create login --value password=only-once -p shop",
        "volume create fresh --size 64M -p shop",
        f"backuprepository create safe --url dir://{tmp_path}",
        "backup create project/shop --to safe --name all",
    ):
        said = weft(*line.split())
        assert said.code == 0, said.err
    refused = weft("backup", "create", "project/nope", "--to", "safe", "--name", "x")
    assert refused.code == 3 and 'project "nope" not found' in refused.err
    assert b"only-once" not in b"".join(one.read_bytes() for one in tmp_path.rglob("*") if one.is_file())

    there = weft("backup", "restore", "all", "-p", "shop", "--dry-run")
    assert (
        there.code == 5
        and "there already: function/echo, secret/login, volume/fresh" in there.err
        and "--into PROJECT" in there.err
    )
    planned = weft("backup", "restore", "all", "-p", "shop", "--dry-run", "--into", "new")
    assert planned.code == 0 and "secret/login  would be created" in planned.out, planned.err
    assert weft("project", "get", "new").code == 3
    for flag, name in (("--new-name", "UPPER"), ("--into", "new_one"), ("--new-name", "copy-")):
        for more in ([], ["--dry-run"]):
            wrong = weft("backup", "restore", "all", "-p", "shop", flag, name, *more)
            assert (wrong.code, wrong.out) == (2, ""), wrong
            assert wrong.err.startswith(f"error: {flag} {name!r} is not a valid name"), wrong.err
            assert wrong.err.count("error: ") == 1 and "use a-z, 0-9 and -" in wrong.err, wrong.err
    _interrupt_and_take_back(weft, monkeypatch)
    restored = weft("backup", "restore", "all", "-p", "shop", "--into", "new")
    assert restored.code == 6 and "network/blue  Ready" in restored.out, restored.err
    assert "function/echo fits on no node" in restored.err  # it has its code: without, it could not be created
    sealed = json.loads(weft("secret", "get", "login", "-p", "new", "-o", "json").out)["spec"]["sealed"]["password"]
    seal_key = bytes.fromhex((fabric.folder / "server" / "seal.key").read_text())
    assert unseal(seal_key, sealed, "secret/new/login/password") == b"only-once"
    assert weft("function", "get", "echo", "-p", "new").code == 0
    again = weft("backup", "restore", "all", "-p", "shop", "--into", "new", "--keep-existing")
    assert again.code == 0 and "volume/fresh  kept" in again.err

    key.write_text(weft("backuprepository", "key", "safe").out)
    (tmp_path / "wrong.key").write_text("0" * 64)
    for place, given in ((tmp_path, tmp_path / "wrong.key"), (tmp_path / "nowhere", key)):
        refused = weft("backuprepository", "create", "found", "--url", f"dir://{place}", "--key-file", str(given))
        assert refused.code == 1 and "weft describe" not in refused.err, refused.err
        assert "create it again\nbackuprepository/found was not kept\n" in refused.err
    taken_in = weft("backuprepository", "create", "found", "--url", f"dir://{tmp_path}", "--key-file", str(key))
    assert taken_in.code == 0 and "backup/all-" in taken_in.out, taken_in.err
    listed = weft("backuprepository", "import", "found", "--dry-run", "-o", "json")
    assert [(one["project"], one["name"], one["of"]) for one in json.loads(listed.out)["items"]] == [
        ("shop", "all", "project/shop")
    ]
    assert "1 of 1 backups are known already" in weft("backuprepository", "import", "found").err
    other = weft("backuprepository", "import", "found", "--into", "third")
    assert other.code == 0 and weft("backup", "get", "all", "-p", "third").code == 0
    assert weft("backup", "delete", "all", "-p", "third", "--yes").code == 0
    verified = weft("backup", "verify", "all", "-p", "shop")  # what another one stands for stays
    assert verified.code == 0 and "backup/all  read" in verified.out, verified.err
    boots = weft("backup", "verify", "all", "-p", "shop", "--boot")
    assert boots.code != 0 and "is of project/shop, which doesn't boot" in boots.err


def _interrupt_and_take_back(weft: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the restore of `shop`, in its last request: the printed undo removes all that was created."""
    create = project_restore._do

    def interrupt(session: Any, step: Any, *more: Any) -> Any:
        made = create(session, step, *more)
        if step.what == "volume/fresh":
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patched:
        patched.setattr(project_restore, "_do", interrupt)
        stopped = weft("backup", "restore", "all", "-p", "shop", "--into", "cut")
    assert stopped.code == 130 and "created so far, and it stays: project/cut" in stopped.err, stopped.err
    assert "backup restore all -p shop --into cut --keep-existing" in stopped.err, stopped.err
    assert weft("volume", "get", "fresh", "-p", "cut").code == 0
    undo = stopped.err.rpartition("undo: ")[2].strip()
    assert "function/echo" in undo and "network/blue" in undo, undo
    for command in undo.split(" && "):
        done = weft(*shlex.split(command)[1:], "--yes")
        assert done.code == 0, (command, done.err)
    assert weft("project", "get", "cut").code == 3


def test_an_image_that_can_not_be_fetched_is_not_waited_for(fabric: Fabric) -> None:
    assert fabric.weft("image", "create", "broken", "--url", "http://127.0.0.1:9/none", "--detach").code == 0
    done = fabric.weft("image", "warm", "broken")
    assert done.code != 0 and "image/broken is not warm" in done.err and "couldn't be fetched" in done.err, done.err
