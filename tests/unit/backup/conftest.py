"""What holds for every test of backups: its files are in memory."""

from tests.shelf import tmp_path_factory as tmp_path_factory
