"""The ``tiny`` image: Debian's cloud kernel, busybox and weft's guest agent, built in seconds."""
