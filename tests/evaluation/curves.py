"""A realistic curve of two models, shared by the tests of pictures and pages."""

from anyres.evaluation.metrics import wilson
from anyres.flow import Point, Size

SIZES = [(32, 32), (64, 64), (96, 96), (128, 128), (160, 160), (224, 224), (96, 160)]
MILLISECONDS = [3.1, 3.6, 4.9, 6.8, 9.7, 19.2, 7.1]
TOP1 = {
    "any-size": [0.681, 0.740, 0.764, 0.764, 0.759, 0.749, 0.770],
    "single-size 96": [0.598, 0.740, 0.782, 0.775, 0.753, 0.749, 0.767],
}
TRAINED = {"any-size": [Size(side, side) for side in (64, 96, 128, 160)], "single-size 96": [Size(96, 96)]}


def point(model: str, height: int, width: int, top1: float, latency_ms: float, n: int = 1000) -> Point:
    correct = round(top1 * n)
    low, high = wilson(correct, n)
    return Point(
        model=model,
        height=height,
        width=width,
        top1=correct / n,
        top1_low=low,
        top1_high=high,
        top5=min(1.0, correct / n + 0.15),
        loss=1.9 - correct / n,
        n=n,
        latency_ms=latency_ms,
        images_per_s=1700 / latency_ms,
        macs=round(1.26e9 * height * width / 224**2),
    )


def curve() -> list[Point]:
    return [
        point(model, *size, top1, ms)
        for model, shares in TOP1.items()
        for size, top1, ms in zip(SIZES, shares, MILLISECONDS, strict=True)
    ]
