"""The busybox image: a container image with one program and all its names."""
