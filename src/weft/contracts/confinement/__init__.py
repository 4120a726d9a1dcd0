"""Rights, system calls and addresses that a process gives up before it reads what strangers send."""
