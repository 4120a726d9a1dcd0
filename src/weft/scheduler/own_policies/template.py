"""A policy to begin with: what ``weft policykit init`` prints."""

TEMPLATE = '''\
"""A placement policy of our own.

    weft policykit test /etc/weft/mine.py
    weft policy create mine --strategy file:/etc/weft/mine.py          (the file lies on the server's machine)
    weft vm create web --image tiny --strategy @mine
"""

import numpy as np


def score(table, request, occasion):
    """How good each node is for this request: one number for each, from 0 (bad) to 100.

    Only nodes that can take the workload count; which ones these are is not this function's business.

    table: nodes as columns, row i of each is the same node; none can be changed
        names, uids                       lists of text
        capacity, allocated               whole numbers, 3 rows: thousandths of a core, bytes of memory, bytes of disk
        used                              as allocated, but as measured on the nodes that measure (measured: flags)
        online, cordoned                  flags
        gpu_free                          nodes x GPUs: thousandths free, -1 where there is none
        text("zone")                      .codes (a number for each node, -1 for none) and .words (what they stand for);
                                          None if no node has it; also name, type, rack, arch, storage, any label
        number("cost")                    None if no node has it, NaN for a node that has none; also any label or resource
        members("default/web"), holds("pool:raw"), distance(uid of a node, in ms), extra("sriov") -> capacity, allocated
    request: amounts (as capacity's rows), gpus, extras, data, groups, spread, caller, mode, basis, ...
    occasion: seed, uid of the workload, last (the node chosen before)

    It runs in a process of its own, without rights, network or files to write, must answer within 0.2 s, and must give the
    same answer to the same question. If it doesn't, it is skipped, and the server's own strategy decides.
    """
    cpu = (table.allocated[0] + request.amounts[0]) / np.maximum(table.capacity[0], 1)
    memory = (table.allocated[1] + request.amounts[1]) / np.maximum(table.capacity[1], 1)
    fullest = np.clip(np.maximum(cpu, memory), 0.0, 1.0)
    values = 100.0 * (1.0 - fullest)  # where the scarcer of the two is least used

    cost = table.number("cost")
    if cost is not None:
        values = np.where(cost > 1.0, values / 2, values)  # rather not where an hour costs more than 1
    return values
'''
