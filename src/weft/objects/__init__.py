"""Parts that all packages share: identity, envelope, condition, quantity, error, lifecycle. Pure; imports nothing of weft."""
