"""``node``: this machine as a node of a cluster."""

from typing import Annotated

import typer


def node(
    join: Annotated[
        str | None,
        typer.Argument(
            metavar="HOST:PORT", help="The address of the head; none with --head.", show_default=False
        ),
    ] = None,
    head: Annotated[bool, typer.Option("--head", help="Start a cluster: this is its first node.")] = False,
    address: Annotated[
        str | None, typer.Option("--address", help="The address of this machine for the other nodes.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1024, max=65535, help="The port of the head.")] = 6379,
    cpus: Annotated[
        int | None,
        typer.Option(
            "--cpus", min=0, help="Stages to run at a time (default: half of the cores, two or more)."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The name to show (default: the host's).")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device", metavar="NAME", help="A device attached to it, for all commands; repeatable."
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=0, help="GPUs to train on (default: those that PyTorch sees)."),
    ] = None,
) -> None:
    """Make this machine a node of a cluster, until interrupted: 'optimize --on ray' runs stages on it.

    All nodes need the same token, in RAY_AUTH_TOKEN or ~/.ray/auth_token, and the same store.
    """
    from edgeopt.cli.process import interruption
    from edgeopt.errors import MissingPackageError, UsageError, install
    from edgeopt.run.cluster.ray_node import Node, running
    from edgeopt.run.cluster.ray_settings import installed

    if head == bool(join):
        raise UsageError(
            "a node joins a cluster or begins one", fix="edgeopt node HOST:PORT, or edgeopt node --head"
        )
    if not installed():
        raise MissingPackageError("a node needs ray, which is not installed", fix=install("cluster"))
    with running(
        Node(join or "", address or "", port, cpus, name or "", tuple(device or ()), gpus)
    ) as process:
        where = (
            f"the head of a cluster at {address or 'this machine'}:{port}" if head else f"a node of {join}"
        )
        typer.echo(f"{where}; it ends with Ctrl-C", err=True)
        interruption.ends_with("the node has left the cluster")
        code = process.wait()
    raise typer.Exit(3 if code else 0)
