"""``store``: what is in the store, what is unused, and what is damaged."""

from typing import Annotated

import typer

from edgeopt.cli.options import AsJson, Command, StoreFolder

app = typer.Typer(help="Look after the store: contents, unused and damaged entries.", no_args_is_help=True)

Delete = Annotated[bool, typer.Option("--delete", help="Remove them; without it, they are only counted.")]


@app.command(cls=Command)
def stats(store: StoreFolder = None, as_json: AsJson = False) -> None:
    """Show the number and the size of entries, by the stage that made them."""
    import json

    from edgeopt.commands.store import contents, folder_of
    from edgeopt.config.units import show_bytes

    folder = folder_of(store)
    found = contents(folder)
    if as_json:
        typer.echo(
            json.dumps({"folder": str(folder), "contents": [each._asdict() for each in found]}, indent=2)
        )
        return
    for each in found:
        typer.echo(f"{show_bytes(each.size_bytes):>12}  {each.entries:>6}  {each.kind}")
    size, entries = sum(each.size_bytes for each in found), sum(each.entries for each in found)
    typer.echo(f"{show_bytes(size):>12}  {entries:>6}  in {folder}")


@app.command(cls=Command)
def gc(
    days: Annotated[
        float, typer.Option("--unused-for", metavar="DAYS", min=0, help="Days without a use of an entry.")
    ] = 30,
    delete: Delete = False,
    store: StoreFolder = None,
) -> None:
    """Remove entries that no run has stored or read for some time, such as from the folder of a node.

    'edgeopt artifacts gc' decides by the runs that are kept instead, and looks after these, too.
    """
    from edgeopt.commands.store import collect, folder_of
    from edgeopt.config.units import show_bytes

    folder = folder_of(store)
    unused = collect(folder, days, delete=delete)
    what = f"{unused.entries} entries unused for {days:g} days, {show_bytes(unused.size_bytes)}, in {folder}"
    typer.echo(f"removed {what}" if delete else f"{what}; remove them with --delete")


@app.command(cls=Command)
def verify(delete: Delete = False, store: StoreFolder = None) -> None:
    """Compare every byte of the store with its digest. Exit code 1: an entry is damaged.

    A run does so with each entry that it reads, and makes damaged ones again.
    """
    from edgeopt.commands.store import damaged, folder_of

    folder = folder_of(store)
    keys = damaged(folder, delete=delete)
    for key in keys:
        typer.echo(f"✗ {key} is damaged{', removed' if delete else ''}")
    if not keys:
        typer.echo(f"✓ all entries of {folder} are intact")
    raise typer.Exit(1 if keys else 0)
