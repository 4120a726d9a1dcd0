"""Entry points: the only room that knows concrete classes and wires processes together."""
