"""Which of three irises it is, by the length and width of sepal and petal: a softmax over model.json, read once."""

import json
import math
from pathlib import Path

MODEL = json.loads(Path(__file__).with_name("model.json").read_text())


def handler(event, context):
    features = event["features"]
    pairs = zip(MODEL["weights"], MODEL["bias"], strict=True)
    scores = [bias + sum(w * x for w, x in zip(weights, features, strict=True)) for weights, bias in pairs]
    most = max(scores)
    shares = [math.exp(score - most) for score in scores]
    best = shares.index(max(shares))
    return {"label": MODEL["labels"][best], "share": round(shares[best] / sum(shares), 3)}
