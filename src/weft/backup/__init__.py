"""The backup repository: what disks held, once each, encrypted, in a folder or a bucket. Synchronous; run it in threads."""
