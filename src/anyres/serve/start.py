"""``anyres serve``: a model or a run -> a server. Read this first; the rest follows from it.

request -> body.py (bounded) -> dispatcher.py (taken? at which size? when?) -> scheduler.py -> model.py -> schema.py
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from anyres.config import UserError, first_line, need
from anyres.runs.opened import Model, ModelSpec, open_model
from anyres.serve.options import TOKEN, ServeOptions
from anyres.storage import read_bytes

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
"""Modules of the extra `serve`."""


def serve(model: Model, options: ServeOptions, began: Callable[[str, str], None]) -> signal.Signals:
    """Serve ``model`` until a signal asks for the end, and everything that was accepted is answered.

    ``began`` is told the address, and one line on what is served, once requests are answered. Returns the signal.
    Raises UserError.
    """
    options.check()
    _check_installed()
    from anyres.serve.app import make_app
    from anyres.serve.model import ServedModel
    from anyres.serve.pictures import ignore_warnings
    from anyres.serve.server import listen, run

    listener = listen(options)  # before the model is loaded: a port in use shows at once
    try:
        ignore_warnings()
        served = ServedModel(open_model(model), options)
        asked = run(make_app(served), listener, lambda address: began(address, served.line))
    finally:
        listener.close()
    return asked or signal.SIGTERM


def serve_on_cluster(
    spec: ModelSpec,
    options: ServeOptions,
    address: str | None,
    replicas: int | None,
    began: Callable[[str, str], None],
) -> signal.Signals:
    """The same by Ray Serve; see ``serve.on_ray.serve_on_ray``. Raises UserError."""
    _check_installed()
    from anyres.serve.on_ray import RayOptions, serve_on_ray

    return serve_on_ray(spec, options, RayOptions(address, replicas), began)


def _check_installed() -> None:
    for module in NEEDED:
        need(module, extra="serve", purpose="anyres serve")


def read_token(file: Path | None) -> str | None:
    """The token: the file's first line, or the environment's; None where there is neither. Raises UserError."""
    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        text = read_bytes(file, most=4096).decode()
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else first_line(error)
        raise UserError(f"--token-file {file}: {said}: name a file that holds the token") from None
    token = text.strip()
    if not token:
        raise UserError(f"--token-file {file} is empty: write a token into it")
    return token
