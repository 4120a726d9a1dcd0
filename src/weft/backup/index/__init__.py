"""Which chunks a disk has, and where they lie."""
