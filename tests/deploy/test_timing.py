"""Configurations timed in processes of their own, which may be started anew."""

from functools import partial

from anyres.deploy.engines.backend import Backend
from anyres.deploy.timing import Job, measure
from anyres.flow import Size
from anyres.models import create_model


def test_processes_are_started_anew() -> None:
    """A round of each start is kept; what cannot run is said once."""
    runs, cannot = (
        Job("anyres", partial(create_model, "restv2_nano"), True, Backend.parse(backend), Size(32, 32), 1, 10**6, 1)
        for backend in ("eager:fp32", "onnxruntime:bf16")
    )
    rows, failed, matrix = measure([cannot, runs], rounds=1, seconds=0.05, processes=2)
    assert [(row.job, len(row.rounds)) for row in rows] == [(runs, 2)]
    assert [each.job for each in failed] == [cannot]
    assert rows[0].peak_mib > 0
    assert matrix["fp32"] > 0
