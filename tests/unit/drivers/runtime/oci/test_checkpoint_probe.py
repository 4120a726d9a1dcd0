"""Whether a node could save containers as they run is told in a sentence, whatever CRIU says."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.drivers.runtime.oci.checkpoint.probe import describe_check, find_checkpoint_problem
from weft.drivers.runtime.oci.mount_namespace import Finished
from weft.drivers.runtime.oci.runtime import Runtime

# criu 3.17.1 of Debian 12 on Linux 6.18
OF_DEBIAN = """Error (criu/util.c:642): exited, status=1
Error (criu/util.c:642): exited, status=1
Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds
Error (criu/vdso.c:613): vdso: Failed to fill self vdso symtable
Error (criu/kerndat.c:1615): kerndat_vdso_fill_symtable failed when initializing kerndat.
Error (criu/crtools.c:260): Could not initialize kernel features detection.
"""


def put(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def runc(folder: Path) -> Runtime:
    return Runtime("/usr/sbin/runc", folder / "runtime")


def test_the_first_error_that_is_a_reason_is_told() -> None:
    said = describe_check("Version: 3.17.1", Finished(1, b"", OF_DEBIAN))
    assert said == "criu 3.17.1 doesn't work with this kernel (vdso: Unexpected rt vDSO area bounds): a newer one may"
    assert "exit code 3" in describe_check("", Finished(3, b"", ""))
    assert (
        describe_check("Version: 4.0", Finished(0, b"Looks good.", "Warn (criu/cr-check.c): Dirty tracking is OFF"))
        == ""
    )


async def test_a_criu_that_fails_as_debian_s_does_and_one_that_works_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "words").write_text(OF_DEBIAN)
    version = '[ "$1" = --version ] && echo Version: 3.17.1 && exit 0'
    put(tmp_path, "criu", f'{version}\n[ "$*" = check ] || exit 9\ncat {tmp_path}/words >&2\nexit 1')
    assert "vdso: Unexpected" in await find_checkpoint_problem(runc(tmp_path))
    put(tmp_path, "criu", "echo Looks good.")
    assert await find_checkpoint_problem(runc(tmp_path)) == ""
    assert "--container-runtime runc" in await find_checkpoint_problem(Runtime("/usr/bin/crun", tmp_path / "runtime"))


async def test_a_node_without_criu_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await find_checkpoint_problem(runc(tmp_path)) == "criu is not installed"
