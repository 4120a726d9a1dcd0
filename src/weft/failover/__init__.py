"""Decide which of two sites runs the guests of a group, with a witness at a third place: the rule. Pure."""
