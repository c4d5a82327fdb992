"""Two hosts train one model; one is killed, comes back, and the result is that of a run that was left alone.

The hosts are namespaces, the agents torchrun's, with its c10d rendezvous. ``benchmarks/resume.py`` does more of it.
"""

from __future__ import annotations

import os
import shlex
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.hosts import Host, Network, enter, why_not
from tests.pictures import make_folder
from tests.runs import SERVER, STEPS, Run, anyres, differences, reach, recorded, say_to

TORCHRUN = shlex.split(
    "--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint alpha:29400 --rdzv-id short --max-restarts 1"
)


def torchrun(host: int, words: list[str], said: Path) -> None:
    """What ``torchrun`` does on the host of that pid, but that its worker is forked, not started anew."""
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    enter(host)
    say_to(said)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # docs/scale.md says why
    config, _, _ = config_from_args(parse_args([*TORCHRUN, "anyres"]))
    config.start_method = "fork"
    elastic_launch(config, anyres)(words)


def kill(agent: BaseProcess) -> None:
    """SIGKILL to an agent and its worker."""
    worker = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text()
    for pid in (int(agent.pid or 0), int(worker)):
        os.kill(pid, signal.SIGKILL)
    agent.join()


@pytest.mark.timeout(600)
def test_a_host_is_killed_and_comes_back(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    data, out = make_folder(tmp_path / "shapes", per_class=14), tmp_path / "cut"
    uncut = Run(data, tmp_path / "uncut", "data.workers=0", processes=2).start()
    words = Run(data, out, "data.workers=0").words

    def start(host: Host) -> BaseProcess:
        process = SERVER.Process(target=torchrun, args=(host.pid, words, tmp_path / f"{host.name}.txt"))
        process.start()
        return process

    with Network(tmp_path) as network:
        alpha, beta = network.host("alpha"), network.host("beta")
        agents = [start(alpha), start(beta)]
        reach(out, 17, lambda: all(agent.is_alive() for agent in agents))
        kill(agents[1])
        agents[1] = start(beta)
        for agent in agents:
            agent.join()
    said = (tmp_path / "alpha.txt").read_text() + (tmp_path / "beta.txt").read_text()
    assert [agent.exitcode for agent in agents] == [0, 0], said
    assert "continuing from step" in said
    assert recorded(out) == STEPS
    uncut.wait()
    assert not differences(uncut.out, out)
