"""The HTTP API of functions: the Lambda API for AWS's SDKs, and the address that each function may have."""
