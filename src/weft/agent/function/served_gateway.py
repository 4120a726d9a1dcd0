"""One gateway whose requests for functions this node serves: what it asked for, and the answers and the output that it doesn't have
yet. Pure but for ``send``."""

from __future__ import annotations

from collections.abc import Callable

from weft.agent.function.pending_output import PendingOutput
from weft.contracts.clock import Clock
from weft.protocol.invocations import Adrift, FromAgent, InstanceState, InvocationAnswer, Keep, Underway, diff_state

Send = Callable[[FromAgent], None]


class ServedGateway:
    def __init__(self, clock: Clock) -> None:
        self.underway: dict[str, str] = {}  # digests of recipes, by invocation that it began or took over
        self.answers: dict[str, InvocationAnswer] = {}  # that it hasn't acknowledged
        self.output = PendingOutput(clock)
        self.defined: set[str] = set()  # recipes that it may invoke
        self.keeps: dict[str, Keep] = {}  # by digest
        self.preparing: set[str] = set()  # its requests to prepare
        self.send: Send | None = None  # None: it isn't connected
        self.away_since = clock.elapsed()
        self._sent: InstanceState | None = None  # on this connection

    def put(self, message: FromAgent) -> None:
        """Send it if the gateway is connected."""
        if self.send is not None:
            self.send(message)

    def put_state(self, state: InstanceState) -> None:
        """Send what has changed of the instances."""
        before, self._sent = self._sent, state
        self.put(state if before is None else diff_state(before, state))

    def begin(self, send: Send) -> None:
        """It is connected: send first the pending invocations, then output, then answers."""
        self.send, self._sent = send, None
        underway = {**self.underway, **{id: "" for id in self.answers if id not in self.underway}}
        send(Underway(list(underway), list(underway.values())))
        for printed in self.output.list():
            send(printed)
        for answer in self.answers.values():
            send(answer)

    def take_over(self, away: ServedGateway) -> None:
        """Learn of the invocations of a gateway that is away, whose callers may come here. It keeps them: it may come back."""
        found = {id: digest for id, digest in away.underway.items() if id not in self.underway}
        late = {id: answer for id, answer in away.answers.items() if id not in self.answers}
        self.underway |= found
        self.answers |= late
        if self.send is not None and (found or late):
            found |= {id: "" for id in late if id not in found}
            self.send(Adrift(list(found), list(found.values())))
            for answer in late.values():
                self.send(answer)

    def absorb(self, gone: ServedGateway) -> None:
        """Take the output of a gateway that doesn't come back."""
        for printed in gone.output.list():
            self.put(self.output.add(printed))

    def forget(self, id: str) -> None:
        """The answer to this invocation has arrived."""
        self.answers.pop(id, None)
        self.underway.pop(id, None)
