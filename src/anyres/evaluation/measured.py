"""What the tasks of this package measure. Imports no torch; ``anyres.tasks.known_metrics`` knows others' tasks too."""

from __future__ import annotations

from anyres.flow import Metric

TOP1 = Metric("top1", "top-1", interval="Wilson")
TOP5 = Metric("top5", "top-5")
MEAN_AP = Metric("map", "mAP", over="the classes", interval="bootstrap")
F1 = Metric("f1", "F1")
LOSS = Metric("loss", "loss", unit="", higher_is_better=False)
MIOU = Metric("miou", "mIoU", over="the classes", interval="bootstrap")
PIXEL_ACCURACY = Metric("pixel_accuracy", "pixel accuracy")
MEASURED = {metric.key: metric for metric in (TOP1, TOP5, MEAN_AP, F1, LOSS, MIOU, PIXEL_ACCURACY)}
"""By key."""
