"""The constraint language: its grammar, its tree, its JSON form, and what in it can never hold. Pure; imports only objects."""
