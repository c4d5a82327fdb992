"""What `anyres bench model` and `anyres bench data` print."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from anyres.cli.console import report_, stdout
from anyres.data.loader_profile import Loading
from anyres.deploy.timing import Row
from anyres.runs.bench import Comparison
from anyres.runs.bench_data import LoadingReport


def comparison_table(compared: Comparison) -> Table:
    """One line for each way to run the model; a disturbed one with the range of its rounds."""
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in compared.matrix.items())
    table = Table(
        title=f"{compared.model} at {compared.size} px, {compared.batch} at a time; "
        f"matrix product here: {rates} GFLOP/s",
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for column in ("form", "backend"):
        table.add_column(column)
    for column in ("images/s", "p50 ms", "p99 ms", "peak MiB", "GFLOP/s", "of the matrix rate"):
        table.add_column(column, justify="right")
    for row in compared.rows:
        table.add_row(
            row.job.name,
            str(row.job.backend),
            _images_per_s(row),
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            f"{row.peak_mib:.0f}",
            f"{row.gflops_per_s:.0f}",
            f"{100 * row.share:.0f} %",
        )
    return table


def _images_per_s(row: Row) -> str:
    if not row.disturbed:
        return f"{row.images_per_s:.1f}"
    return f"{row.images_per_s:.1f} ({min(row.rounds):.1f} to {max(row.rounds):.1f}, disturbed)"


def ratio_sentences(compared: Comparison) -> Iterator[str]:
    """Our fastest row against each peer's."""
    for ratio in compared.ratios:
        yield (
            f"{compared.model} at {compared.size} px, {compared.batch} at a time: {ratio['ratio']:.2f} times "
            f"{ratio['against']} ({ratio['low']:.2f} to {ratio['high']:.2f}; {ratio['ours']} against {ratio['theirs']})"
        )


def show_comparison(compared: Comparison) -> None:
    """Print the table and the ratios."""
    stdout().print(comparison_table(compared))
    report_(*ratio_sentences(compared))


def loading_table(report: LoadingReport) -> Table:
    """One line for each stage of loading, on one core."""
    loading = report.loading
    table = Table("stage", box=None, header_style="bold", pad_edge=False, title=report.title, title_justify="left")
    for column in ("ms an image", "images/s a core", "share"):
        table.add_column(column, justify="right")
    total = sum(loading.milliseconds.values())
    for stage, ms in [*loading.milliseconds.items(), ("all stages", total)]:
        table.add_row(stage, f"{ms:.3f}", f"{1e3 / ms:.0f}" if ms else "", f"{100 * ms / total:.0f} %")
    return table


def loading_sentences(report: LoadingReport) -> Iterator[str]:
    """The whole loader's speed, and what would raise it."""
    yield _whole_loader(report.loading)
    yield from report.advice


def _whole_loader(loading: Loading) -> str:
    processes = f"{loading.workers} worker processes" if loading.workers else "no worker process"
    return (
        f"whole loader: {loading.loader:.0f} images/s with {processes} on {loading.processors} processors; "
        f"{loading.bottleneck} binds"
    )
