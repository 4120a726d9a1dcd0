"""Instances of functions as containers: the same runtime, users and system call profile, without what containers need to
outlive their agent."""
