"""Whether a reading is beyond its limit."""

import os

LIMIT = float(os.environ["LIMIT"])


def handler(event, context):
    over = round(event["celsius"] - LIMIT, 3)
    return {"sensor": event["sensor"], "alarm": over > 0, **({"over": over} if over > 0 else {})}
