"""Chunks of disks, and their places."""
