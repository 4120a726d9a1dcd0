"""Which user a guest's QEMU runs as."""

from __future__ import annotations

import pytest

from weft.drivers.runtime.qemu.process.confinement import FIRST_USER, USERS, choose_user, find_users, plan_confined
from weft.objects.errors import DriverFailed


def test_a_whole_machine_gives_users_that_nobody_else_has() -> None:
    assert find_users("         0          0 4294967295\n") == (FIRST_USER, USERS)


def test_a_container_gives_what_it_has_above_its_own_users() -> None:
    assert find_users("0 100000 65536\n") == (20_000, 45_536)


def test_a_namespace_with_root_alone_is_refused_with_a_remedy() -> None:
    with pytest.raises(DriverFailed) as refused:
        find_users("0 1000 1\n")
    assert refused.value.hint


def test_each_guest_has_its_own_user_and_keeps_it() -> None:
    users = {choose_user(f"guest-{number}", (FIRST_USER, USERS)) for number in range(1000)}
    assert len(users) == 1000
    assert all(FIRST_USER <= user < FIRST_USER + USERS for user in users)
    assert choose_user("guest-7", (FIRST_USER, USERS)) == choose_user("guest-7", (FIRST_USER, USERS))


def test_kvm_is_reached_through_its_group_alone() -> None:
    def options(kvm_group: int | None) -> list[str]:
        return plan_confined(["qemu"], 7, groups=[], kvm_group=kvm_group, open_files=64)

    assert "--clear-groups" in options(None)
    with_kvm = options(104)
    assert with_kvm[with_kvm.index("--groups") + 1] == "104" and "--clear-groups" not in with_kvm
    assert with_kvm[-1] == "qemu"
