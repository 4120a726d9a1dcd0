"""The gateway of devices: twins, checks, windows, rules and commands, beside a supervised broker. Knows no concrete driver."""
