"""``anyres serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import BACKEND, Classes, Model, RayAddress, Weights


@app.command()
def serve(
    model: Model,
    weights: Weights = None,
    classes: Classes = None,
    host: Annotated[str, typer.Option(help="Address to listen at: this machine alone, if not given.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File with the token clients must send; or the variable ANYRES_TOKEN."),
    ] = None,
    open_to_all: Annotated[bool, typer.Option("--open", help="Let other machines ask without a token.")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="Name this server is called by, as `*.example.com`; may be repeated."),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option("--sizes", help="Sizes to choose from, as 64:224:32; those of the run's curve if not given."),
    ] = None,
    max_side: Annotated[int, typer.Option("--max-side", help="Longest side that may be asked for, in pixels.")] = 512,
    backend: Annotated[str, typer.Option("--backend", help=BACKEND)] = "eager",
    batch: Annotated[int, typer.Option(help="Images of one size that are run at a time; a power of two.")] = 8,
    queue_ms: Annotated[
        float, typer.Option("--queue-ms", help="Predicted waiting beyond which a request is refused, in ms.")
    ] = 500.0,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Small first, larger where unsure, as `anyres cascade` chose.")
    ] = False,
    max_megabytes: Annotated[float, typer.Option("--max-megabytes", help="Of a request.")] = 20.0,
    max_megapixels: Annotated[float, typer.Option("--max-megapixels", help="Of an image.")] = 50.0,
    in_flight: Annotated[int, typer.Option("--in-flight", help="Requests at a time.")] = 128,
    drain_seconds: Annotated[
        float, typer.Option("--drain-seconds", help="After SIGTERM new requests are still answered for so long.")
    ] = 3.0,
    engine: Annotated[
        str, typer.Option("--engine", help="local, or ray for Ray Serve on a cluster (pip install 'anyres[ray]').")
    ] = "local",
    address: RayAddress = None,
    replicas: Annotated[
        int | None,
        typer.Option("--replicas", min=1, help="Servers of the Ray cluster; one for each node if not given."),
    ] = None,
) -> None:
    """Answer images over HTTP, each at the size that the request, its deadline or the load calls for; with a page.

    `POST /predict` takes a form's file `image` or the image itself, with `?size=`, `?deadline_ms=` and `?top=`. The
    page at `/` shows an image at every size side by side. KServe's and Triton's protocol is at `/v2`.

    Example: `anyres serve runs/first --port 8000`
    """
    from anyres.cli.console import report_
    from anyres.config import Stopped, UserError
    from anyres.flow import parse_sizes
    from anyres.runs.opened import ModelSpec
    from anyres.serve.options import Limits, Pace, ServeOptions
    from anyres.serve.start import read_token
    from anyres.serve.start import serve as run
    from anyres.training.stop import exit_code

    options = ServeOptions(
        host=host,
        port=port,
        token=read_token(token_file),
        open=open_to_all,
        allow_hosts=tuple(allow_host or ()),
        backend=backend,
        sizes=parse_sizes(sizes) if sizes else (),
        cascade=cascade,
        limits=Limits(
            megabytes=max_megabytes,
            megapixels=max_megapixels,
            side=max_side,
            in_flight=in_flight,
            drain_s=drain_seconds,
        ),
        pace=Pace(batch=batch, queue_ms=queue_ms),
    )

    def began(address: str, what: str) -> None:
        report_(f"serving {what}", f"page and API at {address} (Ctrl-C ends it)")

    spec = ModelSpec(model, weights, classes)
    if engine == "ray":
        from anyres.serve.start import serve_on_cluster

        asked = serve_on_cluster(spec, options, address, replicas, began)
    elif engine != "local" or address or replicas:
        raise UserError(f"--engine {engine}: local or ray; --address and --replicas go with ray")
    else:
        asked = run(spec, options, began)
    raise Stopped(f"stopped by {asked.name}: everything that was accepted has been answered", exit_code(asked))
