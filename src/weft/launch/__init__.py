"""Entry points: the only package that knows concrete classes and wires processes together."""
