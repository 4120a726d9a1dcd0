"""Learns the trees of ``weft.insight.classes`` on drawn series and writes them, and beside this file what they were learnt from.

It alone needs scikit-learn, in an environment of its own; the same versions write the same arrays:

    python -m venv /tmp/learn && /tmp/learn/bin/pip install scikit-learn==1.9.1 numpy==2.4.6 msgspec
    PYTHONPATH=src:. OMP_NUM_THREADS=1 /tmp/learn/bin/python -m benchmarks.insight.learn_classes
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.insight.labelled import BREADTH, FINGERPRINT_SERIES, LEARNT, SEED, digest, draw_measures, fingerprint
from weft.insight.classes import CLASSES, classify
from weft.insight.classes.classify import Trees

SERIES = 360  # of each class
TREES, LEAVES = 100, 8  # of each class; and of each tree
TARGET = Path(str(classify.__code__.co_filename)).with_name("trees.npz")


def main() -> None:
    measures, labels = draw_measures(SEED, SERIES, BREADTH)
    model = HistGradientBoostingClassifier(
        max_iter=TREES, max_leaf_nodes=LEAVES, min_samples_leaf=15, learning_rate=0.1, l2_regularization=1.0,
        early_stopping=False, random_state=SEED,
    ).fit(measures, labels)  # fmt: skip
    trees = flatten(model)
    np.savez_compressed(TARGET, **{name: getattr(trees, name) for name in Trees.__struct_fields__})
    known = {
        "seed": SEED,
        "series": len(labels),
        "arrays": digest(trees),
        "measures": fingerprint(measures[:FINGERPRINT_SERIES]),
    }
    LEARNT.write_text(json.dumps(known, indent=2) + "\n")


def flatten(model: HistGradientBoostingClassifier) -> Trees:
    """All trees as one array for each field of a node."""
    parts, roots, begun = [], [], 0
    for iteration in model._predictors:
        for tree in iteration:
            nodes = tree.nodes
            is_leaf = nodes["is_leaf"].astype(bool)
            parts.append((
                np.where(is_leaf, -1, nodes["feature_idx"]).astype(np.int8),
                np.where(is_leaf, 0, nodes["num_threshold"]).astype(np.float32),
                np.where(is_leaf, 0, nodes["left"] + begun).astype(np.int16),
                np.where(is_leaf, 0, nodes["right"] + begun).astype(np.int16),
                np.where(is_leaf, nodes["value"], 0).astype(np.float32),
            ))  # fmt: skip
            roots.append(begun)
            begun += len(nodes)
    assert begun <= np.iinfo(np.int16).max
    assert len(roots) == TREES * len(CLASSES)
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    start = model._baseline_prediction.ravel().astype(np.float32)
    return Trees(*joined, roots=np.array(roots, np.int16), start=start)


if __name__ == "__main__":
    main()
