"""How a guest's memory and disks migrate: mode, duration and bytes. Pure."""
