"""What a series will be: weighted experts, with an interval that learns from its own errors."""
