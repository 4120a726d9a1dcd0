"""A cluster of three nodes on this machine, for one clone: `make up` and `make down`.

Each node is a set of namespaces (network, mounts, processes) with an init of its own, so its agent and drivers run the
code a real host runs, and killing that init is the power cut. `topology` decides names and numbers (pure), `underlay`
and `cgroups` set up the host, `init` is a node's first process, `daemon` starts and adopts what outlives the
command, `fabric` knows weft's own commands, `up` and `down` put the steps in order.
"""
