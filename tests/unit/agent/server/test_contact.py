"""A node knows whether the server hears it, never longer than the server does."""

from __future__ import annotations

from tests.unit.agent.server.test_reporter import HandClock

from weft.agent.server.contact import CONTACT_SECONDS, Contact
from weft.protocol.heartbeat import LEASE_SECONDS


class Node:
    def __init__(self) -> None:
        self.clock = HandClock()
        self.contact = Contact(self.clock.elapsed)
        self.asked: list[str] = []  # with which token
        self.contact.ask = lambda: self.asked.append(self.contact.token)

    def report(self, takes: float = 0.0) -> bool:
        sent_at, token = self.contact.note_sending(), self.contact.token
        self.clock.time += takes
        return self.contact.note_answer(token, sent_at)

    def list_own(self, *names: str) -> None:
        self.contact.note_list(self.asked[-1], names)


def test_a_lease_may_begin_once_the_server_knows_of_the_silence_and_lists_it_after_that() -> None:
    node = Node()
    assert not node.contact.confirms("a") and not node.asked
    assert node.report()
    assert not node.contact.confirms("a") and not node.contact.confirms("b") and len(node.asked) == 1
    assert node.contact.is_in_contact  # the answer is on its way
    node.list_own("a")
    assert node.contact.confirms("a")
    assert not node.contact.confirms("b") and len(node.asked) == 2  # it may have come since
    node.list_own("a", "b")
    token = node.contact.token
    for _ in range(20):
        node.clock.time += 8.0
        assert not node.report()
        assert node.contact.confirms("a") and node.contact.confirms("b") and node.contact.token == token
    assert len(node.asked) == 2


def test_after_a_silence_it_needs_another_token_and_another_list() -> None:
    node = Node()
    node.report()
    node.contact.confirms("a")
    node.list_own("a")
    token = node.contact.token
    node.contact.confirms("b")
    node.clock.time += CONTACT_SECONDS + 0.1
    assert not node.contact.confirms("a") and not node.contact.is_in_contact
    node.contact.note_sending()
    assert node.contact.token != token
    node.list_own("a", "b")  # asked for before the silence
    assert not node.contact.confirms("a")
    assert node.report()
    assert not node.contact.confirms("a")
    node.list_own("b")
    assert node.contact.confirms("b") and not node.contact.confirms("a")
    assert CONTACT_SECONDS < LEASE_SECONDS


def test_an_answer_that_took_long_is_a_silence_too() -> None:
    node = Node()
    node.report()
    node.contact.confirms("a")
    node.list_own("a")
    token = node.contact.token
    node.clock.time += 8.0
    node.report(takes=20.0)  # the server may have had it after it had counted this node as lost
    assert node.contact.token != token and not node.contact.confirms("a")
    assert node.report()
    assert not node.contact.confirms("a")
    node.list_own("a")
    assert node.contact.confirms("a")
