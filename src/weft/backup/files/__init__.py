"""Single files out of a disk, without mounting it: the disk is a stranger's, so all of this is read with bounds, in a process of
its own without rights (``confined.py``). Nothing here executes, writes or trusts what it reads."""
