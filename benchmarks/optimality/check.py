"""Decisions of the engine, each held against every node by the reference: does the chosen one fit, and is none better?"""

from __future__ import annotations

import random

import msgspec

from benchmarks.optimality.reference import SLACK, Node, draw_node, draw_request, score
from weft.contracts.policy import Request
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.table.facts import Load
from weft.scheduler.table.snapshot import Snapshot


class Check(msgspec.Struct):
    """``wrong`` says what was better than what was decided; ``looked_at``: nodes, one by one."""

    decided: int = 0
    refused: int = 0
    looked_at: int = 0
    wrong: list[str] = []


def check_decisions(nodes: int, decisions: int, seed: int) -> Check:
    """Workloads of all sorts come, and some go, on nodes of all sorts."""
    draw = random.Random(seed)
    snapshot = Snapshot()
    reference = {}
    for number in range(nodes):
        facts = draw_node(draw, number)
        snapshot.put_node(facts)
        reference[facts.name] = Node(facts)
    engine = Engine(snapshot, seed=seed)
    names = sorted(reference)
    running: list[tuple[str, str, Request, Load]] = []
    check = Check()
    for number in range(decisions):
        while running and (draw.random() < 0.25 or len(running) > 12 * nodes):
            allocation, name, gone, load = running.pop(draw.randrange(len(running)))
            snapshot.drop_allocation(allocation)
            reference[name].count(gone, load.gpus, -1)
        request, constraint = draw_request(draw, names)
        last = engine.last
        row = engine.choose(request, f"vm{number}")
        wrong = judge(list(reference.values()), request, constraint, last, None if row is None else snapshot.names[row])
        check.looked_at += nodes
        if row is None:
            check.refused += 1
        else:
            check.decided += 1
            node = reference[snapshot.names[row]]
            load = engine.load(request, row)
            if request.gpus is not None:
                usable = node.fitting_devices(request.gpus)
                taken = [device for device, share in load.gpus if share == request.gpus.share and device in usable]
                if len(set(taken)) != request.gpus.count:
                    wrong = wrong or f"{node.facts.name}: devices {load.gpus} for {request.gpus}"
            allocation = f"a{number}"
            snapshot.put_allocation(allocation, node.facts.uid, request.amounts, load)
            node.count(request, load.gpus, 1)
            engine.last = node.facts.name
            running.append((allocation, node.facts.name, request, load))
        if wrong:
            check.wrong.append(f"{number} {request.strategy}: {wrong}")
    return check


def judge(nodes: list[Node], request: Request, constraint: str | None, last: str | None, chosen: str | None) -> str:
    """What is wrong with the choice of node ``chosen``; empty if nothing is."""
    able = {node.facts.name: node for node in nodes if node.fits(request, constraint)}
    if chosen is None:
        return f"{min(able)} fits" if able else ""
    if chosen not in able:
        return f"{chosen} does not fit"
    scores = {name: score(node, nodes, request, last) for name, node in able.items()}
    best = max(scores.values())
    if best - scores[chosen] > SLACK[request.strategy]:
        return f"{chosen} has {scores[chosen]:.4f}, {max(scores, key=scores.__getitem__)} {best:.4f}"
    equal = min(name for name, value in scores.items() if value == best)
    if scores[chosen] == best and request.strategy in ("least_loaded", "best_fit") and chosen != equal:
        return f"{chosen} is as good as {equal}, which is first by name"
    return ""
