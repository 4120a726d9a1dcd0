"""The debian-12 image: a real distribution, small and quick to boot, with cloud-init and the QEMU guest agent."""
