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
BOX_AP = Metric("box_ap", "box AP", over="the classes", interval="bootstrap")
BOX_AP50 = Metric("box_ap50", "box AP50", over="the classes", interval="bootstrap")
MASK_AP = Metric("mask_ap", "mask AP", over="the classes", interval="bootstrap")
MASK_AP50 = Metric("mask_ap50", "mask AP50", over="the classes", interval="bootstrap")
BOX_AP_SMALL = Metric("box_ap_small", "box AP of small objects", over="the classes")
BOX_AP_MEDIUM = Metric("box_ap_medium", "box AP of medium objects", over="the classes")
BOX_AP_LARGE = Metric("box_ap_large", "box AP of large objects", over="the classes")
BOX_METRICS = (BOX_AP, BOX_AP50, MASK_AP, MASK_AP50, BOX_AP_SMALL, BOX_AP_MEDIUM, BOX_AP_LARGE)
"""What a detector is measured by, those of masks where it answers masks. Objects are small below 32 x 32 pixels of the
picture, large from 96 x 96 on, as COCO has it."""
MEASURED = {metric.key: metric for metric in (TOP1, TOP5, MEAN_AP, F1, LOSS, MIOU, PIXEL_ACCURACY, *BOX_METRICS)}
"""By key."""
