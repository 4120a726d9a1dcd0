"""The constraint language: grammar, tree, JSON form, and contradictions. Pure; imports only objects."""
