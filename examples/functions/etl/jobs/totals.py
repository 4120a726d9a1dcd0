"""Totals of one column of CSV by another."""

import csv
import io


def handler(event, context):
    totals: dict[str, float] = {}
    rows = 0
    for row in csv.DictReader(io.StringIO(event["csv"])):
        totals[row[event["by"]]] = totals.get(row[event["by"]], 0.0) + float(row[event["sum"]])
        rows += 1
    return {"rows": rows, "totals": dict(sorted(totals.items()))}
