"""How bright a gray picture is, how much contrast it has, and how its pixels are spread."""

import base64
import os
import statistics

BINS = int(os.environ.get("BINS", "8"))


def handler(event, context):
    pixels = base64.b64decode(event["gray"])
    if len(pixels) != event["width"] * event["height"]:
        raise ValueError(f"{len(pixels)} pixels are not {event['width']} x {event['height']}")
    histogram = [0] * BINS
    for pixel in pixels:
        histogram[pixel * BINS // 256] += 1
    return {
        "brightness": round(statistics.fmean(pixels) / 255, 3),
        "contrast": round(statistics.pstdev(pixels) / 127.5, 3),
        "histogram": histogram,
    }
