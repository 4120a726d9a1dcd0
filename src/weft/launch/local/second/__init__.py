"""A small Ceph cluster of the local launcher's own: one monitor, one manager, a few OSDs on sparse files, all in one folder."""
