"""Functions that this node serves at an address of its own, also while no server can be reached."""
