"""Carries bytes while someone waits: clients with a ticket reach guests through connections that agents keep."""
