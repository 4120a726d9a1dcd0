"""Guests that run only for as long as their cluster is known to be primary."""
