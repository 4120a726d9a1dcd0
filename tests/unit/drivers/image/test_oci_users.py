from __future__ import annotations

import pytest

from weft.contracts.driver.container import User
from weft.drivers.image.oci.users import find_user
from weft.objects.errors import InvalidInput

PASSWD = (
    b"root:x:0:0:root:/root:/bin/sh\n#no:x:9:9::/:\nweb:x:33:44::/srv:/bin/sh\n"
    b"bad:x:-1:0::/:/\nshort:x:1\n\xff\xfe\nbig:x:99999999999:0::/:/\n"
)
GROUP = b"root:x:0:\nweb:x:44:\nlog:x:5:a,web\nadm:x:4:web\n"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("", User(0, 0, [], "/root")),
        ("web", User(33, 44, [4, 5], "/srv")),
        ("33", User(33, 44, [4, 5], "/srv")),
        ("web:log", User(33, 5, [], "/srv")),
        ("web:77", User(33, 77, [], "/srv")),
        ("1234", User(1234, 0, [], "/")),
        ("1234:44", User(1234, 44, [], "/")),
        (":log", User(0, 5, [], "/root")),
    ],
)
def test_by_name_and_by_number(wanted: str, found: User) -> None:
    assert find_user(wanted, PASSWD, GROUP) == found


@pytest.mark.parametrize("wanted", ["nobody", "bad", "short", "big", "web:none", "-1", "4294967295", "0x0", "٣"])
def test_who_is_not_there_is_refused(wanted: str) -> None:
    with pytest.raises(InvalidInput, match=r"spec\.user") as caught:
        find_user(wanted, PASSWD, GROUP)
    assert caught.value.hint


def test_an_image_without_files_has_numbers() -> None:
    assert find_user("", b"", b"") == User(0, 0, [], "/") and find_user("5:6", b"", b"") == User(5, 6, [], "/")
