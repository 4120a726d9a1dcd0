"""The ``weft`` command. It knows the client and the kinds, nothing else; it shows objects.

``app`` runs a command line, ``command/grammar`` says which verbs there are, ``verbs`` holds one short file for each.
"""
