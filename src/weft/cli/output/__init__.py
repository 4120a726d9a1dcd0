"""How objects are shown: tables that fit the terminal, whole objects as data, one object in full for a person."""
