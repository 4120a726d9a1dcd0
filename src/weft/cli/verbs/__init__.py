"""A short file for each verb. ``command(verb, entry, kind)`` makes its command: after the noun ``kind``, or, when that
is None, on its own."""
