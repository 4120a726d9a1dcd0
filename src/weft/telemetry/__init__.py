"""What happened and how it goes: the journal."""
