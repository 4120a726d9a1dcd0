"""What two processes say to each other: each message, frame and stream once."""
