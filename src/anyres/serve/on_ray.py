"""The same app by Ray Serve: a replica on each node of a cluster, behind Ray's own HTTP proxies.

Each replica chooses sizes by its own load and refuses what it cannot answer in time, as one server does; Ray sends
a request to the replica with fewer in flight.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from anyres.config import UserError
from anyres.models.state_files import digest_of
from anyres.runs.opened import ModelSpec, open_model
from anyres.runs.ray_cluster import cluster, everywhere, open_there, reason_of
from anyres.serve.app import make_app
from anyres.serve.model import ServedModel
from anyres.serve.options import ServeOptions
from anyres.serve.pictures import ignore_warnings

NAME = "anyres"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayOptions:
    """Where replicas run."""

    address: str | None = None  # of the cluster; None: RAY_ADDRESS, or one of this machine that ends with the server
    replicas: int | None = None  # None: one for each node


class Replica:
    """One server in a process of Ray's. ``digest``: of the weights that are meant."""

    def __init__(self, spec: ModelSpec, options: ServeOptions, digest: str) -> None:
        ignore_warnings()
        self.served = ServedModel(open_there(spec, digest), options)

    def __serve_build_asgi_app__(self) -> Any:
        return make_app(self.served)


def serve_on_ray(
    spec: ModelSpec, options: ServeOptions, where: RayOptions, began: Callable[[str, str], None]
) -> signal.Signals:
    """Serve ``spec``'s model on a cluster until a signal asks for the end; what was accepted is answered then.

    Ray's proxies listen at ``options.host`` and ``options.port`` of each node with a replica. ``began`` and what is
    returned: as of ``serve.start.serve``. Raises UserError.
    """
    options.check()
    if options.port == 0:
        raise UserError("--port 0 goes with one server: name a port for Ray's proxies")
    trained = open_model(spec)
    digest = digest_of(trained.model.state_dict())
    with _signal() as asked, cluster(where.address, "anyres serve --engine ray", "ray.serve") as ray:
        from ray import serve

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count = where.replicas or len(nodes)
        try:
            serve.start(
                proxy_location="EveryNode",
                http_options={"host": options.host, "port": options.port},
                logging_config={"log_level": "ERROR", "enable_access_log": False},
            )
            serve.run(_deployment(serve, options, count, nodes).bind(everywhere(spec), options, digest), name=NAME)
        except (RuntimeError, OSError, ray.exceptions.RayError) as error:
            raise UserError(f"Ray Serve: {reason_of(str(error))}") from None
        host = f"[{options.host}]" if ":" in options.host else options.host
        began(f"http://{host}:{options.port}", f"{trained.name}, {count} replicas on {len(nodes)} nodes")
        asked.wait()
        log.info("asked to end: what was accepted is answered")
        serve.delete(NAME)  # waits for it
    return asked.signal


def _deployment(serve: Any, options: ServeOptions, count: int, nodes: list[dict[str, float]]) -> Any:
    """Of ``count`` replicas, spread over the nodes; each takes a GPU, or an even share of the processors."""
    gpus, cpus = (sum(int(node.get(kind, 0)) for node in nodes) for kind in ("GPU", "CPU"))
    limits = options.limits
    return serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        num_replicas=count,
        max_ongoing_requests=limits.in_flight,
        graceful_shutdown_timeout_s=limits.finish_s,
        ray_actor_options={
            "num_cpus": max(1, cpus // count - 1) if cpus > count else 0,  # one of each share is left to Ray
            "num_gpus": 1 if gpus >= count else 0,
        },
    )


class _Asked:
    """That a signal asks for the end, and which."""

    def __init__(self) -> None:
        self.signal = signal.SIGTERM
        self._event = threading.Event()

    def handle(self, number: int, _: object) -> None:
        self.signal = signal.Signals(number)
        self._event.set()

    def wait(self) -> None:
        while not self._event.wait(1.0):  # a wait without end takes no signal
            pass


@contextmanager
def _signal() -> Iterator[_Asked]:
    """Inside, SIGINT and SIGTERM are noted; a second one ends the process as ever."""
    asked = _Asked()
    before: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: object) -> None:
        asked.handle(number, frame)
        for each, handler in before.items():
            signal.signal(each, handler)

    before |= {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
