"""A realistic curve of two models, shared by the tests of pictures and pages."""

from anyres.evaluation.metrics import wilson
from anyres.flow import Cost, Estimate, Metric, Size, SizeResult
from anyres.tasks.classify import Classify

SIZES = [(32, 32), (64, 64), (96, 96), (128, 128), (160, 160), (224, 224), (96, 160)]
MILLISECONDS = [3.1, 3.6, 4.9, 6.8, 9.7, 19.2, 7.1]
TOP1 = {
    "any-size": [0.681, 0.740, 0.764, 0.764, 0.759, 0.749, 0.770],
    "single-size 96": [0.598, 0.740, 0.782, 0.775, 0.753, 0.749, 0.767],
}
TRAINED = {"any-size": [Size(side, side) for side in (64, 96, 128, 160)], "single-size 96": [Size(96, 96)]}


def point(model: str, height: int, width: int, top1: float, latency_ms: float, n: int = 1000) -> SizeResult:
    correct = round(top1 * n)
    low, high = wilson(correct, n)
    metrics = {
        "top1": Estimate(correct / n, low, high),
        "top5": Estimate(min(1.0, correct / n + 0.15)),
        "loss": Estimate(1.9 - correct / n),
    }
    cost = Cost(latency_ms, 1700 / latency_ms, round(1.26e9 * height * width / 224**2))
    return SizeResult(model, Size(height, width), metrics, tuple(Classify.metrics), n, cost)


def curve() -> list[SizeResult]:
    return [
        point(model, *size, top1, ms)
        for model, shares in TOP1.items()
        for size, top1, ms in zip(SIZES, shares, MILLISECONDS, strict=True)
    ]


MAE = Metric("mae", "MAE", unit="px", higher_is_better=False)
WITHIN = Metric("within", "within 3 px")


def pixel_errors() -> list[SizeResult]:
    """A curve of an error in pixels, of which less is better, without intervals."""
    errors = {32: 5.5, 64: 3.5, 96: 2.5, 128: 2.25}
    return [
        SizeResult(
            "ruler",
            Size(side, side),
            {"mae": Estimate(error), "within": Estimate(0.5, 0.4, 0.6) if side > 64 else Estimate(0.25)},
            (MAE, WITHIN),
            40,
            Cost(ms, 1000 / ms, 10**6 * side),
        )
        for (side, error), ms in zip(errors.items(), MILLISECONDS, strict=False)
    ]
