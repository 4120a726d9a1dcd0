"""``weft simulate forecast`` and ``weft simulate anomalies``: what weft would have said of series from files."""
