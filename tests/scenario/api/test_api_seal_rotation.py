"""The sealing key rotates: all that the former sealed is sealed again, for whatever kind it belongs to, and a server that is killed
at any write goes on."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab

from weft.api.rotation import seal as seal_rotation
from weft.api.rotation.reseal import list_sealing
from weft.api.rotation.seal import SealRotation
from weft.client.answer import raise_problem
from weft.contracts.store import StoreFull
from weft.kinds.cluster import ClusterSpec
from weft.kinds.registry import BY_NAME
from weft.kinds.secret import SealedSpec, place_of
from weft.kinds.server import SERVER, ServerSpec
from weft.kinds.token import TOKEN, TokenMarks, TokenSpec
from weft.kinds.user import UserMarks, place_of_password
from weft.objects.envelope import decode_part
from weft.objects.errors import Forbidden, IllegalTransition, InUse, InvalidInput, NotAuthenticated, Unavailable
from weft.objects.identity import object_key
from weft.protocol.server.presence import Presence, encode_presence
from weft.protocol.server.rotation import SEAL, Rotation, rotation_key
from weft.trust.access_keys import derive_secret, place_of_access_key
from weft.trust.seal import is_sealed_with, name_key, open_seal_keys, seal

OLDER_KEY = "WEFT" + "B" * 16  # of an earlier release: its secret isn't stored
PASSWORD = "correct horse battery"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiLab]:
    monkeypatch.setattr(seal_rotation, "SETTLE_SECONDS", 0.0)
    lab = ApiLab(tmp_path)
    lab.api.settings = dataclasses.replace(lab.api.settings, seal_keys=open_seal_keys(lab.folder))
    fill(lab)
    yield lab
    lab.close()


def fill(lab: ApiLab) -> None:
    """One object of each sort that has something sealed."""
    create = lab.client.create
    create({"kind": "secret", "name": "db", "spec": {"values": {"user": "app", "password": "hunter2"}}})
    create({"kind": "backuprepository", "name": "safe", "spec": {"url": "dir:///srv/backups"}})
    create({"kind": "volume", "name": "vault", "spec": {"size": 1 << 24, "encrypted": True}})
    create({"kind": "user", "name": "ann", "spec": {}})
    raise_problem(lab.client.http.request("POST", "/v1/users/ann:passwd", {"password": PASSWORD}))
    create({"kind": "token", "name": "ci", "spec": {"use": "access-key", "project": "default"}})
    older = TOKEN.make("older", TokenSpec(use="access-key", project="default"), 0.0, marks=TokenMarks(key_id=OLDER_KEY))
    link = BY_NAME["cluster"].make("there", ClusterSpec(url="https://192.0.2.1:8443", ca="x"), 0.0)
    place = place_of(None, "there", "token", "cluster")
    sealed = {"token": lab.api.settings.seal_keys.seal(b"of the link", place)}
    link.spec = msgspec.Raw(msgspec.json.encode({**msgspec.json.decode(link.spec), "sealed": sealed}))
    lab.put(older, link)


def read_sealed(lab: ApiLab) -> dict[str, tuple[str, str]]:
    """Each sealed text with its place, by what it is."""
    found = {}
    for kind in list_sealing():
        for entry in lab.run(lab.store.list(f"/{kind.name}/")).entries:
            one = lab.stored(entry.key)
            assert one is not None
            if kind.name == "user" and (hashed := decode_part(one.marks, UserMarks).password):
                found["user/ann"] = hashed, place_of_password(one.uid)
            elif kind is TOKEN and (marks := decode_part(one.marks, TokenMarks)).key_id and marks.sealed:
                found[f"token/{one.name}"] = marks.sealed, place_of_access_key(marks.key_id)
            elif kind.admission.seals:
                for word, text in decode_part(one.spec, SealedSpec).sealed.items():
                    found[f"{one.kind}/{word}"] = text, place_of(one.project, one.name, word, one.kind)
    return found


def open_all(lab: ApiLab) -> dict[str, bytes]:
    keys = lab.api.settings.seal_keys
    return {what: keys.unseal(text, place) for what, (text, place) in read_sealed(lab).items()}


def announce(lab: ApiLab, **servers: Presence | None) -> None:
    """Let this server's lease say which keys it has, and those of ``servers``; None: it has no lease."""
    own = Presence("uid-s1", release="0.1.0", seal_keys=lab.api.settings.seal_keys.ids)
    for name, one in {"s1": own, **servers}.items():
        if one is None:
            lab.put(SERVER.make(name, ServerSpec(), 0.0))
        else:
            lab.run(lab.store.grant(f"server/{name}", name, 60.0, encode_presence(one)))


def read_record(lab: ApiLab) -> Rotation:
    entry = lab.run(lab.store.get(rotation_key(SEAL)))
    assert entry is not None
    return msgspec.json.decode(entry.value, type=Rotation)


def turn(lab: ApiLab, rotation: SealRotation | None = None) -> str:
    """One turn of the server, after its lease; the step that then is."""
    announce(lab)
    lab.run((rotation or SealRotation(lab.api)).turn())
    return read_record(lab).step


def rotate(lab: ApiLab) -> dict[str, Any]:
    answer = lab.client.http.request("POST", "/v1/rotations", {"part": "seal"})
    raise_problem(answer)
    return dict(answer.json())


def show(lab: ApiLab) -> dict[str, Any]:
    answer = lab.client.http.request("GET", "/v1/rotations")
    raise_problem(answer)
    return dict(answer.json()["items"][0])


def test_all_that_is_sealed_is_sealed_again_and_means_the_same(lab: ApiLab) -> None:
    before, keys = open_all(lab), lab.api.settings.seal_keys
    former = keys.keys[0]
    assert set(before) == {
        "secret/user", "secret/password", "backuprepository/key", "volume/key", "user/ann", "token/ci", "cluster/token"
    }  # fmt: skip
    generations = {one["name"]: one["generation"] for one in lab.client.list("secret").items}
    announce(lab)
    assert rotate(lab)["step"] == "spread" and keys.keys[0] == former
    steps = [turn(lab)]
    while steps[-1] != "done":
        steps.append(turn(lab))
    assert list(dict.fromkeys(steps)) == ["switch", "reseal", "drop", "done"]
    (new,) = keys.keys
    assert new != former and (lab.folder / "seal.key").read_text().strip() == new.hex()
    secret = derive_secret(former, OLDER_KEY).encode()
    assert open_all(lab) == {**before, "token/older": secret}
    assert not any(is_sealed_with(former, *one) for one in read_sealed(lab).values())
    assert {one["name"]: one["generation"] for one in lab.client.list("secret").items} == generations
    assert lab.client.http.request("POST", "/v1/login", {"user": "ann", "password": PASSWORD}).status == 201
    shown = show(lab)
    assert (shown["step"], shown["key"], shown["resealed"], shown["unopened"]) == ("done", name_key(new), 7, [])
    assert new.hex() not in str(shown) and former.hex() not in str(shown)
    assert rotate(lab)["step"] == "spread"  # and again


class Killed(BaseException):
    """The server dies here."""


def test_a_server_killed_at_any_write_goes_on_and_nothing_is_lost(lab: ApiLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write to the store, and each of the file with the keys, is the last one of a life; before it and after it."""
    before, commit, keep = open_all(lab), lab.store.commit, type(lab.api.settings.seal_keys).keep
    left = [-1]

    def die() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    async def commit_and_die(*args: Any, **named: Any) -> int:
        die()
        revision = await commit(*args, **named)
        die()
        return revision

    def keep_and_die(self: Any, keys: Any) -> None:
        if tuple(keys) != self.keys:
            die()
            keep(self, keys)
            die()

    monkeypatch.setattr(lab.store, "commit", commit_and_die)
    monkeypatch.setattr(type(lab.api.settings.seal_keys), "keep", keep_and_die)
    deaths, lives = 0, 0

    async def live(begins: bool) -> bool:
        """A life: begin if nothing runs, then one turn."""
        try:
            rotation = SealRotation(lab.api)
            await rotation.refresh()
            if begins:
                await rotation.begin("ann")
            await rotation.turn()
        except Killed:
            return False
        return True

    steps: list[str] = []
    while steps[-1:] != ["done"]:
        lives += 1
        assert lives < 200
        begins = lab.run(lab.store.get(rotation_key(SEAL))) is None
        for place in (1, 2, 3, 4) if begins else (1, 2):  # before the next change, and after it
            announce(lab)
            left[0] = place
            deaths += not lab.run(live(begins=begins))
            left[0] = -1
            opened = open_all(lab)
            assert {what: opened[what] for what in before} == before
        steps.append(read_record(lab).step)
    assert list(dict.fromkeys(steps)) == ["spread", "switch", "reseal", "drop", "done"]
    assert deaths >= 30, deaths  # at the beginning, twice at each object, each step and each change of the keys
    (key,) = lab.api.settings.seal_keys.keys
    assert all(is_sealed_with(key, *one) for one in read_sealed(lab).values())


def test_what_was_sealed_under_way_is_found_by_the_next_walk(lab: ApiLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that has sealed with the former key, and writes late."""
    keys = lab.api.settings.seal_keys
    announce(lab)
    rotate(lab)
    assert turn(lab) == "switch" and turn(lab) == "switch"
    late = keys.keys[1]
    place = place_of("default", "db", "password")
    while turn(lab) != "reseal" or read_record(lab).resealed == 0:
        pass
    monkeypatch.setattr(seal_rotation, "SETTLE_SECONDS", 3600.0)
    one = lab.stored(object_key("secret", "default", "db"))
    assert one is not None
    spec = msgspec.json.decode(one.spec)
    one.spec = msgspec.Raw(
        msgspec.json.encode({**spec, "sealed": {**spec["sealed"], "password": seal(late, b"late", place)}})
    )
    lab.put(one)
    resealed = read_record(lab).resealed
    assert turn(lab) == "reseal" and read_record(lab).resealed == resealed + 1
    assert open_all(lab)["secret/password"] == b"late" and is_sealed_with(
        keys.keys[0], *read_sealed(lab)["secret/password"]
    )


def test_people_who_send_back_what_they_read_before_are_understood_until_the_former_key_is_gone(lab: ApiLab) -> None:
    old = lab.client.get("secret", "db")
    announce(lab)
    rotate(lab)
    while turn(lab) != "reseal" or read_record(lab).resealed == 0:
        pass
    now = lab.client.get("secret", "db")
    assert now["spec"]["sealed"] != old["spec"]["sealed"]
    given = {"kind": "secret", "name": "db", "spec": {**old["spec"], "values": {"more": "x"}}}
    assert set(lab.client.put(given)["spec"]["sealed"]) == {"user", "password", "more"}
    assert open_all(lab)["secret/password"] == b"hunter2"
    while turn(lab) != "done":
        pass
    with pytest.raises(InvalidInput, match="isn't what the object has now") as refused:
        lab.client.put(given)
    assert "get the object again" in (refused.value.hint or "")


def test_a_value_that_no_key_opens_holds_nothing_up_and_is_named(lab: ApiLab) -> None:
    keys = lab.api.settings.seal_keys
    lost = lab.stored(object_key("secret", "default", "db"))
    assert lost is not None
    spec = msgspec.json.decode(lost.spec)
    lost.spec = msgspec.Raw(msgspec.json.encode({**spec, "sealed": {**spec["sealed"], "password": "AQnonsense"}}))
    lab.put(lost)
    announce(lab)
    rotate(lab)
    while turn(lab) != "done":
        pass
    assert show(lab)["unopened"] == ["secret/db"]
    assert keys.unseal(read_sealed(lab)["secret/user"][0], place_of("default", "db", "user")) == b"app"


def test_it_waits_for_a_server_that_is_away_and_one_without_the_key_seals_nothing(lab: ApiLab) -> None:
    announce(lab, s2=None)
    keys = lab.api.settings.seal_keys
    rotate(lab)
    assert turn(lab) == turn(lab) == "spread"
    assert show(lab)["waits_for"] == ["s2: it doesn't answer"]
    announce(lab, s2=Presence("u2", release="0.1.0", seal_keys=[keys.ids[0]]))
    assert turn(lab) == "spread" and show(lab)["waits_for"] == ["s2: it doesn't have the new key yet"]
    announce(lab, s2=Presence("u2", release="0.1.0", seal_keys=keys.ids))
    assert turn(lab) == "switch"
    # Another server goes on without this one's file: as if the folder were one of an old copy.
    former = keys.keys[0]
    keys.keep([former])
    lab.run(SealRotation(lab.api).refresh())
    with pytest.raises(Unavailable) as refused:
        lab.client.create({"kind": "secret", "name": "new", "spec": {"values": {"a": "b"}}})
    assert refused.value.token == "sealKeyMissing"
    with pytest.raises(InUse):
        rotate(lab)


def test_who_has_no_rights_a_second_rotation_and_an_unknown_part_are_refused(lab: ApiLab) -> None:
    announce(lab)
    http = lab.client.http
    for part, said in (("ca", "'ca' doesn't rotate"), ("", "'' doesn't rotate"), ("x" * 64, "part")):
        with pytest.raises(InvalidInput, match=said):
            raise_problem(http.request("POST", "/v1/rotations", {"part": part}))
    with pytest.raises(InvalidInput):
        raise_problem(http.request("POST", "/v1/rotations", {}))
    for spec in ({"role": "viewer"}, {"role": "editor"}, {"role": "admin", "project": "default"}):
        with pytest.raises(Forbidden) as refused:
            raise_problem(lab.with_token(use="access", **spec).http.request("POST", "/v1/rotations", {"part": "seal"}))
        assert refused.value.details["permission"] == "rotation:create"
    node = lab.join("n1")
    for method, path in (("POST", "/v1/rotations"), ("GET", "/v1/rotations"), ("GET", "/v1/servers:seal-keys")):
        body = {"part": "seal"} if method == "POST" else None
        with pytest.raises(Forbidden):
            raise_problem(node.client.http.request(method, path, body))
    with pytest.raises(Forbidden):  # an administrator reads no key, either
        raise_problem(http.request("GET", "/v1/servers:seal-keys"))
    with pytest.raises(NotAuthenticated):
        raise_problem(lab.connect(msgspec.structs.replace(lab.context, token="")).http.request("GET", "/v1/rotations"))
    assert lab.run(lab.store.get(rotation_key(SEAL))) is None and len(lab.api.settings.seal_keys.keys) == 1
    rotate(lab)
    with pytest.raises(InUse, match="a rotation of the sealing key runs already") as second:
        rotate(lab)
    assert second.value.token == "rotationRuns" and len(lab.api.settings.seal_keys.keys) == 2


def test_two_that_begin_together_make_one_rotation(lab: ApiLab) -> None:
    announce(lab)
    outcomes: list[str] = []

    def begin() -> None:
        try:
            outcomes.append(rotate(lab)["key"])
        except InUse:
            outcomes.append("refused")

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("refused") == 3
    assert lab.api.settings.seal_keys.ids[1:] == [read_record(lab).key]


def test_a_server_of_an_earlier_release_is_waited_for_by_people(lab: ApiLab) -> None:
    announce(lab, s2=Presence("u2", release="0.0.9"))
    with pytest.raises(IllegalTransition, match="s2: an earlier release of weft runs there") as refused:
        rotate(lab)
    assert "upgrade" in (refused.value.hint or "")


def test_a_full_store_holds_it_up_and_no_more(lab: ApiLab, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(lab)
    rotate(lab)
    commit = lab.store.commit

    async def refuse(*_: Any, **__: Any) -> int:
        raise StoreFull("the disk is full")

    monkeypatch.setattr(lab.store, "commit", refuse)
    with pytest.raises(StoreFull):
        turn(lab)
    monkeypatch.setattr(lab.store, "commit", commit)
    while turn(lab) != "done":
        pass
