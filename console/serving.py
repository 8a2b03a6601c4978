"""``nearstone serve``: the data plane in the foreground."""

from pathlib import Path
from typing import Annotated

import typer

from console.config import parse_memory
from console.invocation import Invocation
from nbd_plugin.launcher import ServeOptions
from nbd_plugin.launcher import serve as serve_pool


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command()(serve)


def serve(
    ctx: typer.Context,
    socket: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="The Unix socket; DIR/nbd.sock by default.", show_default=False
        ),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Listen on TCP as well; may be given several times. Needs TLS or --insecure.",
            show_default=False,
        ),
    ] = None,
    tls_certificates: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="TLS with X.509: a folder with ca-cert.pem, server-cert.pem and server-key.pem.",
            show_default=False,
        ),
    ] = None,
    tls_psk: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="TLS with pre-shared keys, as psktool writes.", show_default=False
        ),
    ] = None,
    is_peer_verified: Annotated[
        bool, typer.Option("--tls-verify-peer", help="Clients need a certificate of the same CA.")
    ] = False,
    is_insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow TCP without TLS: anyone may connect.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory of the store; 256MiB by default.", show_default=False
        ),
    ] = None,
    is_restarted: Annotated[
        bool,
        typer.Option("--restart/--no-restart", help="Start the data plane again should it crash."),
    ] = True,
) -> None:
    """Serve the pool's disks over NBD in the foreground, until Ctrl-C or SIGTERM.

    Prints one line when it is ready. A disk is then nbd+unix:///NAME?socket=DIR/nbd.sock. Disks
    that are made meanwhile can be used at once. A pool folder that does not exist yet is made.

    Examples:

    ```
    nearstone --pool /srv/nearstone serve
    nearstone serve --listen 192.0.2.7:10809 --tls-certificates /etc/nearstone/tls
    ```
    """
    invocation = Invocation.of(ctx)
    options = ServeOptions(
        pool=invocation.pool,
        socket=socket,
        listen=listen or (),
        tls_certificates=tls_certificates,
        tls_psk=tls_psk,
        tls_verify_peer=is_peer_verified,
        insecure=is_insecure,
        memory_bytes=parse_memory(memory) if memory is not None else invocation.config.memory,
        restart=is_restarted,
    )
    raise typer.Exit(serve_pool(options))
