"""Manifests: what people write down in YAML, JSON, TOML or nix, with the place of every field in the file."""
