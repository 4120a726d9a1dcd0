"""People's door: the ``weft`` command. It knows the client and the kinds, nothing else; it shows objects.

``app`` reads the command line, ``grammar`` says which verbs there are, ``verbs`` holds one short file for each.
"""
