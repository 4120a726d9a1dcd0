"""How what is large gets from one node to another: which way, how long, how much. Pure."""
