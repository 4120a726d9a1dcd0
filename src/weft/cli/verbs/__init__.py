"""The verbs, by subject. ``command(verb, entry, kind)``, or ``VERB_command``, makes one: after the noun ``kind``, or when that
is None, on its own."""
