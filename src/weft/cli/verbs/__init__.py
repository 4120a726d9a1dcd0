"""One short file for each verb. ``command(verb, entry, kind)`` makes its command: after the noun ``kind``, or on its own
when ``kind`` is None."""
