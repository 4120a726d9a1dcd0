"""Where a repository's objects lie: a folder or a bucket."""
