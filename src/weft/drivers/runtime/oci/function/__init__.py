"""Instances of functions as containers: the same runtime, users and system call profile as containers have, without what those
need to outlive their agent."""
