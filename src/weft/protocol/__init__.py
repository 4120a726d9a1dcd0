"""The messages, frames and streams between two processes, each defined once."""
