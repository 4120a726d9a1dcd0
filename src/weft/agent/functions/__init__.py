"""Functions on this node: the gateway's invocations, instances that serve them, and the room that they may take."""
