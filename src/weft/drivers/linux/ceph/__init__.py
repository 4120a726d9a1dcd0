"""Ceph as a client sees it: its configuration files and its programs."""
