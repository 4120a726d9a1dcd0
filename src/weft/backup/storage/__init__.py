"""Places of a repository's objects: a folder or a bucket."""
