"""Whether a reading is beyond its limit: of a call, or of a device whose topic invokes the function."""

import os

LIMIT = float(os.environ["LIMIT"])


def handler(event, context):
    reading = event.get("data", event)
    value, sensor = reading.get("celsius", reading.get("temperature")), reading.get("sensor", event.get("device"))
    over = round(value - LIMIT, 3)
    if over > 0:
        print(f"{sensor} is at {value}: {over} over the limit")
    return {"sensor": sensor, "alarm": over > 0, **({"over": over} if over > 0 else {})}
