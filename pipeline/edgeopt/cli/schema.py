"""``schema``: the JSON Schema of what people write and read, and of the jobs that a device is sent."""

from typing import Annotated

import typer


def schema(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="recipe, device, report, bundle, job or job_result.")
    ],
) -> None:
    """Print a JSON Schema, so that an editor completes and checks what you write.

    The plugins of other packages that are installed here are part of it.
    """
    from edgeopt.commands import schemas
    from edgeopt.config.nearest import nearest
    from edgeopt.errors import UsageError

    for name in schemas.NAMES:
        if name == what:
            typer.echo(schemas.text(name, installed=True), nl=False)
            return
    raise UsageError(f"no schema {what!r}{nearest(what, schemas.NAMES)}")
