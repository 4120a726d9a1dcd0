"""What the command says without a server: grammar, help, suggestions, exit codes; and that it starts fast."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from weft.cli.app import make_root, run
from weft.cli.command import synonyms
from weft.cli.command.exit_codes import join_codes, partial_code
from weft.cli.command.grammar import DAILY, TOOLS, VERBS, load, verbs_of
from weft.cli.reference import write_cli_page, write_exit_codes_page
from weft.cli.verbs.apply import show_change
from weft.contracts.clock import SystemClock
from weft.kinds.registry import BY_NAME, KINDS


class Said:
    """Runs the command and keeps what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, line: str) -> tuple[int, str, str]:
        code = run(line.split(), SystemClock)
        out, err = self._capsys.readouterr()
        return code, out, err


@pytest.fixture
def weft(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WEFT_CONTEXT", "WEFT_SERVER", "WEFT_OUTPUT", "WEFT_PROJECT", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return Said(capsys)


def test_every_verb_of_every_kind_loads_and_has_help(weft: Said) -> None:
    words = [[kind.name, verb] for kind in KINDS for verb in verbs_of(kind.name)]
    words += [[verb] for verb in [*verbs_of(None), *TOOLS]]
    for line in words:
        code, out, err = weft(" ".join([*line, "--help"]))
        assert (code, err) == (0, ""), line
        assert out.startswith(f"Usage: weft {' '.join(line)} "), line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("vm create web --image tiny --label a=1 --label a=2", "--label: a is given twice"),
        ("container create web --image r.test/a:1 --env a=1,a=2", "--env: a is given twice"),
        ("container exec web -e a=1 -e a=2 -- true", "--env: a is given twice"),
        ("vm label web a=1 a=2", "labels: a is given twice"),
        ("vm label web a=1 a-", "labels: a is given twice"),
        ("secret create s --value a=1 --value a=2", "--value: a is given twice"),
        ("secret create s --value a=1 --from-file a=/dev/null", "--from-file: a is given twice"),
        ("alert list --label a=1 --label a=2", "--label: a is given twice"),
        ("function create f --code . --schedule 0;zone=UTC;zone=UTC", "--schedule: zone is given twice"),
        ('vm create web --image tiny --constraint {"a":1,"a":2}', "a is given twice"),
    ],
)
def test_what_one_command_says_twice_is_named(
    weft: Said, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    monkeypatch.setenv("WEFT_SERVER", "https://127.0.0.1:9")
    code, out, err = weft(line)
    assert (code, out) == (2, "") and said in err and "keep one of them" in err


def test_an_argument_that_is_not_utf8_is_refused_with_its_place(weft: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_SERVER", "https://127.0.0.1:9")
    code, out, err = weft("container exec caf\udce9 -- true")
    assert code == 2 and out == "" and "argument 3 of the command line is not valid UTF-8" in err and "bug" not in err


def test_no_command_has_a_word_for_two_things_and_each_can_be_explained() -> None:
    for kind in [*KINDS, None]:
        for verb, entry in verbs_of(kind.name if kind else None).items():
            command = load(verb, entry, kind)
            names = [name for one in command.params for name in [*one.opts, *one.secondary_opts]]
            assert sorted({*names}) == sorted(names), f"{kind.name if kind else 'weft'} {verb}"
            takes = {"--explain", "--debug", "--project"} <= {*names}
            assert takes or isinstance(command, click.Group), f"{kind.name if kind else 'weft'} {verb}"


def test_every_own_verb_of_a_kind_has_a_command() -> None:
    for kind in KINDS:
        for verb in kind.verbs:
            if verb.name in synonyms.ELSEWHERE:
                assert verb.name not in verbs_of(kind.name), f"{kind.name} {verb.name} has two names"
                continue
            assert verb.name in verbs_of(kind.name), f"{kind.name} {verb.name}"
            assert isinstance(load(verb.name, verbs_of(kind.name)[verb.name], kind), click.Command)


def test_kinds_that_weft_makes_itself_can_only_be_looked_at() -> None:
    assert not {"create", "edit", "delete", "label"} & set(verbs_of("allocation"))
    assert {"list", "get", "describe", "wait"} <= set(verbs_of("allocation"))


@pytest.mark.parametrize("kind", ["recommendation", "report"])
def test_a_question_is_made_and_read_and_never_changed(kind: str) -> None:
    assert {"create", "get", "delete"} <= set(verbs_of(kind))
    assert not {"set", "edit", "label"} & set(verbs_of(kind))


def test_no_word_means_two_things() -> None:
    nouns = {word for kind in KINDS for word in (kind.name, kind.plural, *kind.display.aliases)}
    assert not nouns & {*VERBS, *TOOLS, *verbs_of(None)}


@pytest.mark.parametrize(
    ("line", "says", "suggests"),
    [
        ("vmm list", "no such command: vmm", "weft vm"),
        ("vm lst", "no such command: lst", "weft vm list"),
        ("vm create x --image tny --memroy 1G", "no such option: --memroy", "did you mean --memory?"),
        ("get vmm", "no such kind: 'vmm'", "did you mean vm?"),
        ("create vmm x", "no such command: vmm", "weft create vm"),
        ("schema vm.spec.cpuu", "is not a field", "did you mean vm.spec.cpu?"),
        ("vm list -o jsn", "'jsn' is not one of", "weft vm list --help"),
        ("vm wait web --timeout soon", "'soon' is not a duration", "30s"),
        ("vm create web", "--image is missing", "give --image"),
        ("vm create web --image tiny --memory -5G", "--memory: -5G is negative", "512M"),
        ("vm create web --image tiny --memory=5X", "not a unit of size", "512M"),
        ("vm create web --image tiny --cpu nan", "not a number of cores", "0.5"),
        ("vm create web --image tiny --publish 99999:80", "--publish: port 99999", "HOST:GUEST"),
        ("vm create Web_1 --image tiny", "name 'Web_1' is not a valid name", "a-z"),
        ("vm create a b --image tiny", "more than one name given", "--help"),
        ("network create blue --cidr 10.0.0.1/24", "--cidr: 10.0.0.1/24 has", "10.20.0.0/24"),
        ("volume create data", "--size is missing", "give --size"),
        ("image add x ssh://host/x", "no scheme weft can fetch", "file:///"),
        ("image add gold vm/web", "vm/web is a VM, not a file", "weft image create gold --from vm/web"),
        ("image create gold", "--url: the image has no source", "--from to make it from a VM"),
        ("image create gold --from container/web", "--from: 'container/web' is not a VM", "weft container convert web"),
        ("vm delete web", "--yes", ""),
        ("vm exec web", "the command is missing", "weft vm exec web -- CMD"),
        ("container exec web", "the command is missing", "weft container exec web -- CMD"),
        ("apply", "no file given", "weft apply FILE, or - for standard input"),
        ("vm get web -l a=b", "not both", ""),
        ("vm stop network/blue", "network/blue is not a VM", ""),
        ("backup restore ../default/monday", "'../default/monday' is not a backup's name", "-p PROJECT"),
        ("vm stop default/web", "'default/web' is not a VM's name", "give NAME or vm/NAME; of another project"),
        ("node drain default/n1", "'default/n1' is not a node's name", "give NAME or node/NAME\n"),
        ("backup restore bakup/monday", "no such kind: 'bakup'", "did you mean backup?"),
        ("get default/web", "no such kind: 'default'", "weft --help lists the kinds\n"),
        ("top gpu", "no metrics for 'gpu'", "weft top nodes|vms|containers|migrations"),
        ("logs web --since soon", "'--since': 'soon' is not a duration", "weft logs --help"),
        ("vm migrate web --live --cold", "give either --live or --cold, not both", ""),
        ("vm migrate web --cold --live --dry-run", "give either --live or --cold, not both", ""),
        ("vm create web --image tiny --lease reservation", "--start is missing", "give a time like"),
        ("job create x --image y --lease reservation -- true", "--start is missing", "give a time like"),
        (
            "vm create web --image tiny --lease immediate --start 2h",
            "--start goes with --lease reservation",
            "leave it out",
        ),
        ("reservation create r --cpu 1 --memory 1G", "--duration: a reservation needs this or --end", "write 2h"),
        ("audit verify /", "'/' is a directory", "weft audit --help"),
        ("audit verify /nope", "/nope: no such file", "weft audit export FILE writes one"),
        ("audit delete", "'delete' is not one of", "weft audit --help"),
        ("snapshot rename a b", "weft snapshot rename: an object keeps its name", "weft snapshot label NAME KEY=VALUE"),
        ("vm rename a b", "weft vm rename: an object keeps its name", "weft vm clone NAME NEW_NAME makes a copy"),
        ("backup create vm/web --to safe --keep 0s", "--keep must be longer than 0", "leave --keep out"),
        ("schema", "KIND[.FIELD] is missing", "weft schema"),
        ("volume create --config none.yaml x", "none.yaml: no such file", ""),
        ("fabric upgrade", "upgrade takes --to: a folder of packages", "weft fabric upgrade --to dist"),
        ("fabric upgrade --to /nope --dry-run", "--to /nope: no such folder", "give the folder in which weft-client"),
        ("fabric downgrade", "'downgrade' is not one of 'upgrade', 'rotate'", "weft fabric --help"),
        ("rebalance plan --moves x", "--moves: 'x' is not a whole number from 0 to 500", "weft rebalance --help"),
        (
            "rebalance plan --concurrent 0",
            "--concurrent: 0 is not a whole number from 1 to 16",
            "weft rebalance --help",
        ),
        ("vm logs web --tail x", "--tail: 'x' is not a whole number from -1 on", "--help"),
        ("vm logs web -n x", "-n: 'x' is not a whole number from -1 on", "--help"),
        ("vm console web --port 80", "--port needs --vnc: give it too", "--help"),
        ("vm screen web --port 70000", "--port: 70000 is not a whole number from 0 to 65535", "--help"),
        ("vm migrate web --dry-run --at yesterday", "--at: 'yesterday' is not a time", ""),
        ("vm migrate web --pause 2m", "2m is too long; give at most 1m", "--help"),
        (
            "container create c --image y --health-check-command true --health-check-interval 0s",
            "--health-check-interval must be more than 0",
            "a usual one is 30s",
        ),
        ("function invoke f --async --timeout 5s", "--timeout has no effect with --async", "leave out --timeout"),
        ("function invoke f --async --tail-logs", "--tail-logs has no effect with --async", "leave out --tail-logs"),
        ("vm migrate web --cold --pause 1s", "--pause has no effect with --cold", "leave out --pause"),
        ("vm migrate web --cold --allow-pause", "--allow-pause has no effect with --cold", "leave out --allow-pause"),
        ("vm stop web --detach --timeout 5s", "--timeout has no effect with --detach", "leave out one"),
        ("token create --use server --role viewer", "--role has no effect on a server token", "leave out --role"),
        ("token create --join --role viewer", "--role has no effect on a join token", "leave out --role"),
        ("token create --join --use server", "--join, --access-key and --use contradict each other", "one of them"),
        ("token create --access-key --use server", "--join, --access-key and --use contradict", "one of them"),
        ("token create --server https://127.0.0.1:9", "--server is for the command", "leave out --server"),
        ("rollout status a --to -3", "--to: -3 is not a whole number from 1 on", "--help"),
    ],
)
def test_a_command_that_cannot_be_understood_says_why_and_what_instead(
    weft: Said, line: str, says: str, suggests: str
) -> None:
    code, out, err = weft(line)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
    assert suggests in err
    assert "Traceback" not in err
    assert "invalid value for '[" not in err


def test_an_error_names_a_flag_only_for_what_was_typed_as_one(weft: Said) -> None:
    Path("web.yaml").write_text("kind: vm\nname: web\nspec:\n  image: tiny\n  memory: -5G\n")
    code, _, err = weft("vm create --config web.yaml --cpu 1")
    assert code == 2 and "web.yaml:5" in err and "spec.memory" in err
    code, _, err = weft("vm create --config web.yaml --memory=-6G")
    assert code == 2 and "--memory: -6G is negative" in err
    code, _, err = weft("vm create web --image tiny --memory=-5G -o json")
    assert code == 2 and json.loads(err)["details"]["field"] == "spec.memory"


@pytest.mark.parametrize(
    ("line", "says", "suggests"),
    [
        ("get pods", "no such kind: 'pods'", "did you mean containers?"),
        ("get replicasets", "no such kind: 'replicasets'", "did you mean deployments?"),
        ("get all", "no such kind: 'all'", "did you mean weft ps?"),
        ("pods list", "no such command: pods", "did you mean weft container?"),
        ("container run", "no such command: run", "did you mean weft container create NAME IMAGE -- COMMAND?"),
        ("vm run web tiny", "no such command: run", "did you mean weft vm create NAME --image IMAGE?"),
        ("function run f", "no such command: run", "did you mean weft function invoke NAME?"),
        ("vm shell web", "no such command: shell", "did you mean weft vm exec -t NAME -- sh?"),
        ("shell web", "no such command: shell", "did you mean weft exec -t NAME -- sh?"),
        ("vm publish web", "no such command: publish", "did you mean weft image create IMAGE --from vm/NAME?"),
        ("launch tiny web", "no such command: launch", "did you mean weft vm create NAME --image IMAGE?"),
        ("docker ps -a", "no such command: docker", "weft takes the verb itself: weft ps"),
        ("podman run --rm busybox", "no such command: podman", "weft takes the verb itself: weft run"),
        ("kubectl get pods", "no such command: kubectl", "weft takes the verb itself: weft get containers"),
        ("kubectl describe pod web", "no such command: kubectl", "itself: weft describe container NAME"),
        ("kubectl get all", "no such command: kubectl", "weft takes the verb itself: weft ps"),
        ("kubectl frobnicate", "no such command: kubectl", "weft takes the verb itself, like weft ps   weft --help"),
        ("incus launch images:debian/12", "no such command: incus", "itself: weft vm create NAME --image IMAGE"),
        ("virsh list", "no such command: virsh", "weft takes the verb itself: weft vm list"),
        ("virsh dominfo web", "no such command: virsh", "weft takes the verb itself: weft vm describe NAME"),
        ("qm start 101", "no such command: qm", "weft takes the verb itself: weft vm start"),
        ("nomad job status", "no such command: nomad", "weft takes the verb itself: weft job list"),
        ("nomad status", "no such command: nomad", "weft takes the verb itself: weft ps"),
        ("docker", "no such command: docker", "weft takes the verb itself, like weft ps   weft --help"),
        ("vm docker", "no such command: docker", "weft vm --help"),
        ("vm migrat web", "no such command: migrat", "did you mean weft vm migrate?"),
        ("vm mov web", "no such command: mov", "did you mean weft vm migrate?"),
        ("sbatch job.sh", "no such command: sbatch", "did you mean weft job run NAME --image IMAGE -- COMMAND?"),
        ("squeue", "no such command: squeue", "did you mean weft queue, or weft job list?"),
        ("sinfo", "no such command: sinfo", "did you mean weft node list, or weft capacity?"),
        ("scancel 12", "no such command: scancel", "did you mean weft job cancel NAME?"),
        ("salloc", "no such command: salloc", "did you mean weft vm create NAME --image IMAGE --lease immediate"),
        ("container update web", "weft container update: not there yet", "nearest: weft container set NAME"),
        ("vm snapshots", "no such command: snapshots", "did you mean weft vm snapshot?"),
        ("vm checkpoint web", "no such command: checkpoint", "did you mean weft vm snapshot NAME --memory?"),
        ("vm revert web", "no such command: revert", "did you mean weft vm restore NAME --snapshot SNAPSHOT?"),
        ("rollback web", "no such command: rollback", "did you mean weft vm restore NAME --snapshot SNAPSHOT?"),
        ("vm copy web b", "no such command: copy", "did you mean weft vm clone NAME NEW_NAME?"),
        ("vm listsnapshot web", "no such command: listsnapshot", "did you mean weft snapshot list?"),
        ("snapshot web", "no such command: web", "did you mean weft vm snapshot web?"),
        ("snapshot take web", "no such command: take", "did you mean weft vm snapshot NAME"),
        ("snapshot revert web", "no such command: revert", "did you mean weft snapshot restore NAME?"),
        ("network snapshot web", "no such command: snapshot", "did you mean weft vm snapshot NAME?"),
        ("incus snapshot create web s1", "no such command: incus", "weft vm snapshot NAME"),
        ("qm snapshot 100 s1", "no such command: qm", "weft vm snapshot"),
        ("virsh snapshot-create-as web s1", "no such command: virsh", "weft vm snapshot NAME --name SNAPSHOT"),
        ("virsh snapshot-revert web s1", "no such command: virsh", "weft vm restore NAME --snapshot SNAPSHOT"),
        ("vm trace web", "no such command: trace", "did you mean weft network trace vm/NAME TO?"),
        ("vm flows web", "no such command: flows", "did you mean weft network flows --vm NAME?"),
        ("vm extend-lease web", "no such command: extend-lease", "did you mean weft lease extend NAME --by 1h?"),
        (
            "run busybox sh -c date",
            "no such option: -c",
            "put a command that has options of its own after --   weft run --help",
        ),
        ("token create --expires 0", "--expires: 0 is less than a second", "give a duration like 1h"),
        (
            "backuppolicy create p --of vm/shop --to safe --every 300",
            "300 has no unit",
            "write 300s, 300m, 300h or 300d",
        ),
        ("vm snapshot web --every 30", "30 has no unit", "write 30s, 30m, 30h or 30d"),
        ("vm create web --image tiny --lease immediate --duration 2", "2 has no unit", "write 2s, 2m, 2h or 2d"),
        ("lease extend vm/web --by 30", "30 has no unit", "write 30s, 30m, 30h or 30d"),
        ("reservation create r --duration 2", "2 has no unit", "write 2s, 2m, 2h or 2d"),
        ("node drain n1 --in 5", "5 has no unit", "write 5s, 5m, 5h or 5d"),
        ("node drain n1 --for 2", "2 has no unit", "write 2s, 2m, 2h or 2d"),
        ("vm migrate web --at 22:00 --within 30", "30 has no unit", "write 30s, 30m, 30h or 30d"),
        ("alert silence --for 2", "2 has no unit", "write 2s, 2m, 2h or 2d"),
        ("token create --expires 30", "30 has no unit", "write 30s, 30m, 30h or 30d"),
        (
            "vm create web --image tiny --gpus=-1",
            "--gpus: expected a whole number >= 0",
            "give a whole number (number of",
        ),
        ("convert vm/web", "--to is missing: give vm or container", "weft convert --help"),
        ("passwd", "the name is missing", "weft passwd --help"),
        ("vm create web --image tiny -v a:/b", "no such option: -v", "weft vm create --help"),
        ("deployment scale web -3", "no such option: -3, and no number here may be negative", "scale --help"),
        ("container create web busybox -e A=1", "no such option: -e", "did you mean --env?"),
        ("container create web busybox -v a:/b", "no such option: -v", "did you mean --mount?"),
        ("container create web busybox -p 80:80", "-p means --project", "to publish a port: --publish 80:80"),
        ("vm migrate web --target n1", "no such option: --target", "did you mean --to?"),
        ("vm create web --image tiny --suspendable", "no such option: --suspendable", "did you mean --preemptible?"),
        ("vm migrate web n1", "give one workload: they are migrated one at a time", "--to n1"),
        ("get vm,container", "vm,container: name one kind", "weft ps lists VMs, containers and jobs"),
        ("api get v1/projects/lab", "'v1/projects/lab' has no / at its start", "weft api get /v1/projects/lab"),
        ("--context ftp://x vm list", "a context is a file or a name, not an address", "weft login --server"),
        ("vm metrics web --granularity 0", "--granularity", "0 is too short"),
        ("set web --memory 1G", "the kind is missing", "give KIND/NAME: weft set vm/web"),
        ("set vm/web --wrong 1", "no such option: --wrong", "weft vm set --help"),
        (
            "container set api --copies 2",
            "no such option: --copies",
            "only of vm and volume   weft container set --help",
        ),
        ("set container/api --copies 2", "no such option: --copies", "only of vm and volume"),
        ("container create api busybox --copies 2", "no such option: --copies", "only of vm and volume"),
        ("vm set web --pids 5", "no such option: --pids", "only of container"),
        ("set vm/web --memroy 1G", "no such option: --memroy", "did you mean --memory?"),
        ("vm set web memory=96M", "'memory=96M' is not a name", "write --memory 96M"),
        ("vm set web memory 96M", "give one object", "write --memory 96M"),
        ("vm create web tiny", "more than one name given: web tiny", "write --image tiny"),
        ("network create blue 10.0.0.0/24", "more than one name given", "write --cidr 10.0.0.0/24"),
        ("run busybox echo hi", "'echo': a command comes after --", "weft run busybox -- echo hi"),
        (
            "run web reg.io/busybox:1 echo hi",
            "'echo': a command comes after --",
            "weft run web reg.io/busybox:1 -- echo hi",
        ),
        ("run busybox /bin/echo hi", "'/bin/echo': a command comes", "weft run busybox -- /bin/echo hi"),
        ("-p shop run busybox --cpu 2 echo hi", "'echo': a command", "weft -p shop run busybox --cpu 2 -- echo hi"),
        (
            "run --env echo=1 -l a=b reg.io/a:1 echo $HOME",
            "'echo'",
            "weft run reg.io/a:1 --env echo=1 -l a=b -- echo '$HOME'",
        ),
        ("job run busybox a b -- c", "'a': a command comes after --", "weft job run busybox -- a b c"),
        ("run --name web busybox echo", "'echo': a command comes", "weft run busybox --name web -- echo"),
        ("run --dry-run=client busybox a b", "'a': a command comes", "weft run busybox --dry-run=client -- a b"),
        ("run web --image busybox echo", "'echo': a command comes after --", "weft run web --image busybox -- echo"),
        ("run --image busybox echo hi", "'echo': a command comes after --", "weft run --image busybox -- echo hi"),
        ("container create web busybox echo", "'echo': a command", "weft container create web busybox -- echo"),
        ("create container web --image a echo", "'echo'", "weft create container web --image a -- echo"),
        ("run -- echo hi", "the image is missing: give IMAGE", ""),
        ("vm create web --image tiny -- echo", "a VM has no command; leave out -- and what follows", ""),
        ('function invoke f {"n":1}', "give one function", """--data '{"n":1}'"""),
    ],
)
def test_what_hands_remember_of_other_tools_is_understood_or_told_right(
    weft: Said, line: str, says: str, suggests: str
) -> None:
    code, out, err = weft(line)
    assert (code, out) == (2, "")
    assert says in err
    assert suggests in err


def test_an_option_is_suggested_only_for_a_word_like_it(weft: Said) -> None:
    code, _, err = weft("events --grep 3m")
    assert code == 2 and "no such option: --grep" in err and "did you mean" not in err
    assert "did you mean --follow?" in weft("events --folow")[2]


def test_a_value_that_changes_is_shown_with_its_unit_and_none_as_a_dash() -> None:
    assert show_change({"path": "spec.full_name", "old": "", "new": "Ann"}, BY_NAME["user"]) == ("–", "Ann")
    shown = show_change({"path": "spec.timeout", "old": 30.0, "new": 5400.0}, BY_NAME["function"])
    assert shown == ("30s", "1h30m")


def test_every_command_that_is_suggested_is_one() -> None:
    root = make_root()
    top = click.Context(root, info_name="weft")
    for word, line in synonyms.COMMANDS.items():
        assert word not in root.entries() and word not in synonyms.SYNONYMS, word
        first, *rest = line.split(",")[0].split()
        command = root.get_command(top, first)
        assert command is not None, line
        if isinstance(command, click.Group):
            assert command.get_command(click.Context(command, parent=top, info_name=first), rest[0]) is not None, line
    for line in filter(None, synonyms.OTHERWISE.values()):
        assert root.get_command(top, line.split()[0]) is not None, line
    for program, kind in synonyms.PROGRAMS.items():
        assert root.get_command(top, program) is None, f"{program} is a word of weft's own"
        assert kind is None or kind in BY_NAME
    for (noun, word), line in synonyms.AFTER.items():
        first, second = line.split(",")[0].split()[:2]
        assert word not in verbs_of(noun), (noun, word)
        assert first in verbs_of(noun) or (first in BY_NAME and second in verbs_of(first)), (noun, word)
    for word, kind in synonyms.NOUNS.items():
        assert kind in BY_NAME
        assert root.get_command(top, word) is None, f"{word} is a word of weft's own"


def test_synonyms_are_no_words_of_their_own_and_lead_to_real_verbs() -> None:
    own = {*verbs_of(None), *TOOLS, *(verb for kind in KINDS for verb in verbs_of(kind.name))}
    own.remove("ls")  # weft backup ls BACKUP lists files; without a name it is list, as everywhere
    assert not own & set(synonyms.SYNONYMS)
    assert set(synonyms.SYNONYMS.values()) <= own


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("vm ls", "vm list"),
        ("rm vm/web", "delete vm/web"),
        ("vm info", "vm describe"),
        ("vm move web --to", "vm migrate web --to"),
    ],
)
def test_a_synonym_is_its_verb(weft: Said, line: str, same: str) -> None:
    assert weft(line) == weft(same)


def test_without_a_context_the_next_command_is_named(weft: Said) -> None:
    code, out, err = weft("vm list")
    assert (code, out) == (4, "")
    assert "weft login --server" in err and "make up" not in err


def test_errors_are_objects_where_a_program_reads(weft: Said) -> None:
    for line in ("vm list -o json", "vm list --output=json", "vm list --memroy -o json", "-o json vm frob"):
        code, _, err = weft(line)
        told = json.loads(err)
        assert {"code", "message", "details", "hint", "retryable", "request_id"} <= set(told), line
        assert code in (2, 4)


def test_a_server_that_is_not_there_is_said_so(weft: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_SERVER", "https://127.0.0.1:1")
    code, _, err = weft("vm list")
    assert code == 1
    assert "no weft server answers at https://127.0.0.1:1" in err
    assert "is the address right?" in err and "make up" not in err
    assert weft("doctor")[0] == 1
    for command in (
        "logs srv -f",
        "describe vmm",
        "explain srv",
    ):  # like words for kinds: nobody knows whether they are names
        code, _, err = weft(command)
        assert "no weft server answers" in err and "did you mean" not in err, command


def test_exit_codes_are_listed(weft: Said) -> None:
    code, out, _ = weft("help exit-codes")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "130"]


def test_several_exit_codes_become_one() -> None:
    assert join_codes([0, 0]) == 0
    assert join_codes([0, 6]) == 6
    assert join_codes([3, 6]) == 8
    assert partial_code([0, 3]) == 8
    assert partial_code([3, 3]) == 3


def test_help_of_a_command_is_found_by_its_words(weft: Said) -> None:
    assert weft("help vm create")[1] == weft("vm create --help")[1]
    assert weft("help")[1] == weft("--help")[1] == weft("")[1]
    assert "weft simulate placement --help" in weft("help simulate placement")[2]


def test_a_verb_that_does_something_of_its_own_for_a_kind_is_listed_with_that(weft: Said) -> None:
    for noun, verb, says in (
        ("backup", "get", "Copy a file or a folder out of a backup"),
        ("secret", "set", "Change values of a secret"),
        ("quota", "describe", "Show the limits of a project"),
        ("vm", "get", "Show objects, or list them"),
    ):
        assert f"{verb} {says}" in " ".join(weft(f"{noun} --help")[1].split())


def test_completion_offers_nouns_verbs_and_options() -> None:
    env = {"_WEFT_COMPLETE": "bash_complete", "PATH": "/nowhere"}

    def offer(words: str, number: int) -> set[str]:
        argv = [sys.executable, "-c", "from weft.launch.entry import main; main()"]
        done = subprocess.run(
            argv, env={**env, "COMP_WORDS": words, "COMP_CWORD": str(number)}, capture_output=True, text=True
        )
        return {line.partition(",")[2] for line in done.stdout.splitlines()}

    assert {"vm", "network", "apply", "get"} <= offer("weft ", 1)
    assert offer("weft vm st", 2) == {"start", "stop"}
    assert "--memory" in offer("weft vm create --m", 3)
    assert offer("weft simulate ", 2) == {"placement", "leases", "rebalance", "forecast", "anomalies"} and offer(
        "weft polic", 1
    ) == {"policykit"}
    assert offer("weft vm create x --strategy best-fit,co", 5) == {"best-fit,cost"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(weft: Said, shell: str) -> None:
    code, out, _ = weft(f"completion {shell}")
    assert code == 0
    assert "_WEFT_COMPLETE" in out


def test_completion_is_installed_where_each_shell_looks_for_it(
    weft: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHELL", "/bin/bash")
    code, out, err = weft("completion install")
    place = tmp_path / ".local" / "share" / "bash-completion" / "completions" / "weft"
    assert (code, out) == (0, f"completion  {place}\n") and "next shell" in err
    assert place.read_text().strip() == weft("completion bash")[1].strip()
    assert weft("completion install fish")[0] == 0
    assert "_WEFT_COMPLETE" in (tmp_path / ".config" / "fish" / "completions" / "weft.fish").read_text()
    (tmp_path / ".zshrc").write_text("alias l=ls\n")
    for _ in range(2):
        assert weft("completion install zsh")[0] == 0
    assert (tmp_path / ".zshrc").read_text() == 'alias l=ls\neval "$(weft completion zsh)"\n'
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert weft("completion install")[0] == 2


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from weft.cli.app import run; run(['--help'], None)\n"
        "heavy = 'asyncio rich yaml uvicorn starlette numpy cryptography http.client ssl subprocess'.split()\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_a_list_loads_nothing_heavy() -> None:
    program = (
        "import sys; from weft.cli.app import run; from weft.contracts.clock import SystemClock\n"
        "run(['vm', 'list'], SystemClock)\n"
        "heavy = 'rich yaml uvicorn starlette numpy cryptography'.split()\n"
        "assert not [name for name in heavy if name in sys.modules], sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)


# Modules that are loaded, the interpreter's own and click's among them: they are what a start takes, and a count is the same
# on every machine. Whoever adds one to every command's start is to mean it.
@pytest.mark.parametrize(("line", "most"), [("--help", 340), ("help vm create", 430), ("vm list", 389)])
def test_a_command_starts_with_few_modules(line: str, most: int, tmp_path: Path) -> None:
    program = (
        "import sys; from weft.cli.app import run; from weft.contracts.clock import SystemClock\n"
        f"run({line.split()!r}, SystemClock)\n"
        "print(len(sys.modules), file=sys.stderr)"
    )
    env = {"WEFT_SERVER": "https://127.0.0.1:1", "HOME": str(tmp_path), "PATH": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True)
    assert int(done.stderr.splitlines()[-1]) <= most


def test_the_root_has_every_word_once() -> None:
    words = make_root().list_commands(click.Context(make_root()))
    assert len(words) == len(set(words))


def test_the_reference_pages_are_what_the_commands_say() -> None:
    pages = Path(__file__).resolve().parents[4] / "docs" / "reference"
    assert (pages / "cli.md").read_text() == write_cli_page(), "python -m weft.cli.reference cli >docs/reference/cli.md"
    assert (pages / "exit-codes.md").read_text() == write_exit_codes_page()


@pytest.mark.parametrize(("gone", "code"), [(False, 1), (True, 0)])
def test_a_broken_pipe_is_no_failure_only_where_nobody_reads_the_output_any_more(gone: bool, code: int) -> None:
    program = (
        "import sys, click, weft.cli.app as app; from weft.contracts.clock import SystemClock\n"
        "def broken(): raise BrokenPipeError\n"
        "app.make_root = lambda: click.Command('weft', callback=broken)\n"
        "sys.exit(app.run([], SystemClock))"
    )
    reader, writer = os.pipe()
    if gone:
        os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode == code
    assert ("was closed by its other end" in done.stderr) is not gone


def test_a_full_disk_behind_standard_output_is_told_as_what_it_is() -> None:
    code = "import sys; from weft.launch.entry import main; main()"
    with open("/dev/full", "w") as full:
        said = subprocess.run(
            [sys.executable, "-c", code, "schema", "vm"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert said.returncode == 1
    assert "No space left on device" in said.stderr and "defect" not in said.stderr


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_without_standard_streams_a_command_does_what_it_does(closed: str, tmp_path: Path) -> None:
    """As a daemon may start it: what it prints goes nowhere, and no file that it opens is taken for its output."""
    add = f"context add lab {tmp_path}/lab.json"
    (tmp_path / "lab.json").write_text('{"server": "https://lab"}')
    weft_ = f"{sys.executable} -c 'import sys; from weft.launch.entry import main; main()'"
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(f"{weft_} {add} {closed}", shell=True, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    kept = json.loads((tmp_path / ".config" / "weft" / "contexts" / "lab.json").read_text())
    assert kept == {"server": "https://lab"}, "it is whole"


def test_programs_that_a_command_without_standard_streams_starts_have_some_that_lead_nowhere(tmp_path: Path) -> None:
    """Else the first file that such a program opens is what it reads as its input, or prints into."""
    look = "for n in 0 1 2; do [ /proc/$$/fd/$n -ef /dev/null ] && echo $n >&9; done"
    program = (
        "import subprocess; from weft.launch.entry import _replace_closed_streams; _replace_closed_streams(); "
        f"subprocess.run(['sh', '-c', '{look}'], pass_fds=[9])"
    )
    seen = tmp_path / "seen"
    subprocess.run(["sh", "-c", f'exec "$@" 9>{seen} <&- >&- 2>&-', "sh", sys.executable, "-c", program], check=True)
    assert seen.read_text().split() == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("said", "paints"), [("", True), ("NO_COLOR=1", False), ("--no-color", False), ("TERM=dumb", False)]
)
def test_colours_are_for_terminals_that_want_them_and_a_line_is_as_long_as_columns_says(
    said: str, paints: bool, tmp_path: Path
) -> None:
    settings = dict([said.split("=")] if "=" in said else [])
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "TERM": "xterm", "COLUMNS": "61", **settings}
    master, slave = pty.openpty()
    weft_ = [sys.executable, "-c", "from weft.launch.entry import main; main()", "schema", "vm"]
    with (
        open(master, "rb", buffering=0) as terminal,
        subprocess.Popen(
            [*weft_, *([said] if said.startswith("-") else [])], stdin=slave, stdout=slave, stderr=slave, env=env
        ) as process,
    ):
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # what a terminal says when its last program is gone
            while piece := terminal.read(65536):
                shown += piece
    text = shown.decode()
    assert process.returncode == 0 and "spec.memory" in text
    assert ("\x1b" in text) == paints, said
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()) <= 61


@pytest.mark.parametrize(
    ("line", "image", "name"),
    [
        ("run busybox --dry-run=client -o json -- echo hi", "busybox", "busybox-...."),
        ("run r.example.org/tools/box:1 --dry-run=client -o json", "r.example.org/tools/box:1", "box-...."),
        ("run once busybox --dry-run=client -o json", "busybox", "once"),
        ("run once --image busybox --dry-run=client -o json", "busybox", "once"),
        ("run busybox --name once --dry-run=client -o json", "busybox", "once"),
    ],
)
def test_what_is_run_needs_no_name_but_its_image(weft: Said, line: str, image: str, name: str) -> None:
    code, out, err = weft(line)
    assert code == 0, err
    made = json.loads(out)
    assert (made["spec"]["task"]["image"], bool(re.fullmatch(name, made["name"]))) == (image, True)


def test_no_word_that_is_merely_spelled_alike_leads_to_what_destroys_or_to_another_noun(weft: Said) -> None:
    typed = [verb[:at] + verb[at + 1 :] for verb in synonyms.DESTROYING for at in range(len(verb))]
    typed += [*synonyms.NOT_YET, "dlete", "evacuate", "launch", "prune", "deploi", "resto"]
    for word in typed:
        if word in verbs_of("vm"):
            continue
        code, _, err = weft(f"vm {word} web")
        assert code == 2, word
        proposed = err.partition("did you mean weft ")[2].split()
        if word not in synonyms.COMMANDS:
            assert not set(proposed[:2]) & {*synonyms.DESTROYING}, (word, err)
        assert not proposed or proposed[0] == "vm" or proposed[0] not in BY_NAME, (word, err)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["cluster", "replicate", "vm/web", "--destination", ""], "--destination"),
        (["vm", "get", ""], "argument NAME"),
        (["api", "GET", ""], "argument PATH"),
        (["cp", "", "vm/web:/tmp"], "argument FROM"),
        (["vm", "delete", "-l", ""], "-l"),
        (["wait", "vm/web", "--for="], "--for"),
        (["--project", "", "vm", "list"], "--project"),
        (["vm", "list", "--context", ""], "--context"),
    ],
)
def test_an_empty_value_that_means_nothing_is_refused_with_its_name(
    words: list[str], what: str, weft: Said, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words, SystemClock) == 2
    assert capsys.readouterr().err.startswith(f"error: {what} must not be empty\n")


def test_the_audit_log_is_not_asked_for_a_kind_that_does_not_exist(weft: Said) -> None:
    code, _, err = weft("audit list --kind vmm")
    assert code != 0 and "vmm" in err and "did you mean" in err


def test_the_help_shows_what_people_use_every_day_and_leads_to_the_rest(weft: Said) -> None:
    _, brief, _ = weft("--help")
    objects = brief.partition("Objects:")[2].partition("More:")[0]
    assert len(brief.splitlines()) - len(objects.splitlines()) <= 34 and "Other" not in objects
    listed = objects.replace(",", " ").split()
    assert {kind.name for kind in KINDS if kind.access.writer == "people"} <= set(listed)
    for line in DAILY:
        assert line.split()[0] in {*verbs_of(None), *TOOLS, *BY_NAME}, line
    _, whole, _ = weft("help all")
    assert all(f"  {word} " in whole or f"  {word}\n" in whole for word in [*verbs_of(None), *TOOLS])


@pytest.mark.parametrize(
    "words",
    [
        ["function", "set", "f", "--schedule", ""],
        ["network", "set", "n", "--open", ""],
        ["vm", "set", "web", "--publish", ""],
        ["cluster", "link", "west", "--grants", ""],
        ["cluster", "set", "west", "--grants", ""],
    ],
)
def test_an_empty_value_that_takes_away_what_was_set_is_one(
    words: list[str], weft: Said, capsys: pytest.CaptureFixture[str]
) -> None:
    run(words, SystemClock)
    assert "must not be empty" not in capsys.readouterr().err
