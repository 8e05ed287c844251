"""``schema``: JSON Schemas of recipes, device files, reports, searches, bundles and device jobs."""

from typing import Annotated

import typer


def schema(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="recipe, device, report, search, bundle, job or job_result.")
    ],
) -> None:
    """Print a JSON Schema, for completion and validation in an editor.

    It includes the plugins of other installed packages.
    """
    from edgeopt.commands import schemas
    from edgeopt.config.nearest import nearest
    from edgeopt.errors import UsageError

    for name in schemas.NAMES:
        if name == what:
            typer.echo(schemas.text(name, installed=True), nl=False)
            return
    raise UsageError(f"no schema {what!r}{nearest(what, schemas.NAMES)}")
