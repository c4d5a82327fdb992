"""What `anyres cascade` prints."""

from __future__ import annotations

from rich.table import Table

from anyres.runs.cascade import ChosenCascade


def stages_table(chosen: ChosenCascade) -> Table:
    """One line for each stage: when it answers, for how many images, its time, and its top-1 alone."""
    cascade, result = chosen.cascade, chosen.result
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stage", "answers from", "images", "ms an image", "top-1 alone"):
        table.add_column(column, justify="right")
    for i, size in enumerate(cascade.parsed):
        stage = chosen.stages[size]
        table.add_row(
            f"{size} px",
            f"{100 * cascade.thresholds[i]:.1f} % confidence" if i < len(cascade.thresholds) else "always",
            f"{100 * result.shares[i]:.1f} %",
            f"{1000 * stage.seconds:.2f}",
            f"{100 * (stage.logits.argmax(1) == chosen.target).double().mean():.1f} %",
        )
    return table


def result_sentence(chosen: ChosenCascade) -> str:
    """The cascade against its largest size alone, on the images that did not choose it."""
    cascade, result = chosen.cascade, chosen.result
    top1, alone = (100 * right / result.n for right in (result.right, result.right_alone))
    return (
        f"on {result.n} images that did not choose it: top-1 {top1:.2f} % against {alone:.2f} % of "
        f"{cascade.sizes[-1]} px alone ({result.gained} gained, {result.lost} lost), at "
        f"{result.seconds_alone / result.seconds:.2f} times its images/s"
    )
