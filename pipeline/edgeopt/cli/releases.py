"""``artifacts``, what comes after publishing: verifying, channels, collecting, building again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.artifacts import NAME_HELP, Library, Who, app, places_of
from edgeopt.cli.options import AsJson, DataRoot, DeviceFolders, StoreFolder, folders

if TYPE_CHECKING:
    from edgeopt.publish.places import Places
    from edgeopt.publish.remote import Remote


@app.command()
def verify(
    target: Annotated[
        str | None, typer.Argument(metavar="[FOLDER]", help="A folder that was pulled; or use --all.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Read every byte of the library and of the store again.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option("--require-signature", metavar="KEY", help="A public key (PEM).")
    ] = None,
    library: Library = None,
    store: StoreFolder = None,
) -> None:
    """Hold what is here against its digests, and its signature. Exit code 1: something is not as it was."""
    from edgeopt.errors import UsageError
    from edgeopt.publish.care import verify_all
    from edgeopt.publish.pulling import check_folder
    from edgeopt.run.store import store_folder

    places = places_of(library)
    if everything == (target is not None):
        raise UsageError("what is to be verified?", fix="give a pulled FOLDER, or --all")
    if target is not None:
        folder = Path(target)
        if not folder.is_dir():
            raise UsageError(f"{target} is no folder", fix="pull it first, then verify the folder; or --all")
        contract = check_folder(folder)
        key = key or places.settings.require_signature
        if key is not None:
            from edgeopt.publish.trust.signing import verify as check_signature

            check_signature(folder, key)
        signed = "signature verified" if key else "signature not asked for (--require-signature KEY)"
        typer.echo(f"{folder}: {contract.name}@{contract.version}, digests verified, {signed}")
        return
    faults = verify_all(places, store_folder(store))
    for fault in faults:
        typer.echo(f"{fault.where}: {fault.what}")
    if faults:
        raise typer.Exit(1)
    names = ", ".join(places.names()) or "an empty library"
    typer.echo(f"{names} and the store: every byte is as it was")


@app.command()
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME@VERSION", help=NAME_HELP)],
    channel: Annotated[
        str, typer.Option("--channel", help="The channel that shall stand for it.")
    ] = "stable",
    who: Who = "",
    library: Library = None,
) -> None:
    """Let a channel stand for a version. Exit code 1: a gate of its run did not hold."""
    from edgeopt.errors import UsageError
    from edgeopt.publish.channels import promote as promoted
    from edgeopt.publish.names import check_channel, parse
    from edgeopt.publish.transfer import find_release

    places = places_of(library)
    reference = parse(name)
    if reference.channel == "stable" and not name.endswith(":stable"):
        raise UsageError(f"which version of {name}?", fix=f"edgeopt artifacts promote {name}@VERSION")
    source = places.source(reference)
    with places.held(reference.name):
        release = find_release(source, reference)
        promoted(source, check_channel(channel), release.version, who=who)
        _follow_here(places, reference.name, source, channel)
    typer.echo(f"{reference.name}:{channel} is now {release.version}  {source.url}")


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help=NAME_HELP)],
    channel: Annotated[str, typer.Option("--channel", help="The channel to move back.")] = "stable",
    who: Who = "",
    library: Library = None,
) -> None:
    """Let a channel stand for the version before the one it stands for. The move is kept in its history."""
    from edgeopt.publish.channels import rollback as rolled_back
    from edgeopt.publish.names import check_channel, parse

    places = places_of(library)
    reference = parse(name)
    source = places.source(reference)
    with places.held(reference.name):
        move = rolled_back(source, check_channel(channel), who=who)
        _follow_here(places, reference.name, source, channel)
    typer.echo(f"{reference.name}:{channel} is {move.version} again  {source.url}")


@app.command()
def gc(
    keep_last: Annotated[
        int, typer.Option("--keep-last", min=0, help="Versions per name and runs per recipe that stay.")
    ] = 5,
    keep_channels: Annotated[
        bool,
        typer.Option(
            "--keep-channels/--channels-now",
            help="Keep what channels can be rolled back to, or only where they stand now.",
        ),
    ] = True,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without, it is only shown.")] = False,
    baselines: Annotated[
        list[Path] | None,
        typer.Option("--baseline", help="Keep what this baseline was measured on (default: baseline.json)."),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of runs.")] = Path("artifacts/runs"),
    library: Library = None,
    store: StoreFolder = None,
) -> None:
    """Show what may go from artifacts/, and with --delete remove it.

    What a channel stands for and what a baseline was measured on always stays, and so does finished work that
    was used within a day: a run that is under way may need it.
    """
    from edgeopt.evaluation.baseline import read_baseline
    from edgeopt.publish.care import collect
    from edgeopt.run.store import store_folder

    places = places_of(library)
    usual = [Path("baseline.json")] if Path("baseline.json").is_file() else []
    files = [*(baselines or usual), *places.settings.baselines]
    held = {entry.digest for file in files for entry in read_baseline(file).entries if entry.digest}
    garbage = collect(
        places,
        runs,
        store_folder(store),
        keep_last=keep_last,
        keep_channels=keep_channels,
        held=held,
        delete=delete,
    )
    for each in garbage:
        typer.echo(f"{each.size_bytes / 1e6:10,.1f} MB  {each.what}")
    total = sum(each.size_bytes for each in garbage) / 1e6
    done = "removed" if delete else "may go; remove it with --delete"
    typer.echo(f"{total:10,.1f} MB  {done}" if garbage else "nothing to remove")


@app.command()
def reproduce(
    target: Annotated[str, typer.Argument(metavar="NAME_OR_FOLDER", help=f"A pulled folder, or {NAME_HELP}")],
    device: Annotated[str, typer.Option("--device", help="With a NAME: whose bundle.")] = "host",
    variant: Annotated[str | None, typer.Option("--variant", help="With a NAME: this variant.")] = None,
    format_name: Annotated[str | None, typer.Option("--format", help="With a NAME: this format.")] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", help="Where relative paths of the recipe are looked up (default: here)."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="A store to use; default: a new, empty one.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let the recipe run code that does not lie beside it.")
    ] = False,
    data_root: DataRoot = None,
    devices: DeviceFolders = None,
    library: Library = None,
    as_json: AsJson = False,
) -> None:
    """Build an artifact again from the recipe in its bundle, and tell whether it is the same.

    Exit code 0: the same, byte for byte or graph and tensors. 1: it differs. 2: model or data are others.
    """
    import tempfile

    from edgeopt.cli.screen.progress import Progress
    from edgeopt.commands.reproduce import reproduce as rebuilt
    from edgeopt.publish.names import parse
    from edgeopt.publish.pulling import described, pick, place
    from edgeopt.publish.transfer import fetch_bundle, find_release

    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        folder = Path(target)
        if not folder.is_dir():
            places = places_of(library)
            reference = parse(target)
            source, shelf = places.source(reference), places.library(reference.name)
            with shelf.locked(exclusive=False):
                release = find_release(source, reference)
                wanted, board = described(device, folders(devices))
                choice = pick(release.index, wanted, board, variant, format_name)
                if source.url != shelf.url:
                    fetch_bundle(release, choice.descriptor, source, shelf, places.root / reference.name)
                folder = place(release, choice, shelf, Path(scratch) / "bundle").folder
        with Progress() as progress:
            found = rebuilt(
                folder,
                store=store,
                data_root=data_root,
                beside=beside or [Path.cwd()],
                trust=trust,
                watch=progress,
            )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        typer.echo(str(found))
    raise typer.Exit(found.exit_code)


def _follow_here(places: "Places", name: str, source: "Remote", channel: str) -> None:
    """Let a channel that was moved elsewhere stand in the library as well, for whoever works offline."""
    from edgeopt.publish.channels import follow

    if name in places.names() and places.library(name).url != source.url:
        follow(source, places.library(name), channel)
