"""The alphabet every room speaks: identity, envelope, condition, quantity, error, lifecycle. Pure; imports nothing of weft."""
