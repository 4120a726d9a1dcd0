"""Functions on this node: invocations from the gateway, the instances that serve them, and their capacity."""
