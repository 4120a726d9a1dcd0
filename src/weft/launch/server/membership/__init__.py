"""Servers of a fabric: who each is, how it begins or joins, and what it says of itself."""
