"""Functions on this node: the gateway's invocations, instances that serve them, and the memory that they may take."""
