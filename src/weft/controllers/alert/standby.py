"""Gives the evaluator of a server that doesn't lead the rules, too: each server evaluates them over its own history, so what is
pending when the leader changes has been pending there as long.

Reads the view; writes the evaluator's file. Does nothing where there is one server."""

from __future__ import annotations

from contextlib import suppress

from weft.contracts.clock import Clock
from weft.controllers.alert.controller import Evaluates
from weft.controllers.alert.rules import choose_rules, write_rules
from weft.informer.cache import Cache
from weft.kinds.alert_rule import ALERT_RULE
from weft.kinds.server import SERVER

EVERY_SECONDS = 5.0


async def keep_rules(evaluator: Evaluates, cache: Cache, clock: Clock) -> None:
    """Write the rules whenever they have changed, until cancelled."""
    written = b""
    while True:
        await clock.sleep(EVERY_SECONDS)
        if len(cache.view.of_kind(SERVER.name)) > 1:  # an empty view of the beginning has none, and would end all
            rules = choose_rules(cache.view.of_kind(ALERT_RULE.name).values()).values()
            document = write_rules(rules, evaluator.interval)
            if document != written:
                with suppress(OSError):
                    evaluator.write_rules(document)
                    written = document
