"""``artifacts``, maintenance: verification, channels, garbage collection, reproduction."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.artifacts.bundles import NAME_HELP, Library, Who, app, places_of
from edgeopt.cli.options import AsJson, Command, DataRoot, DeviceFolders, StoreFolder, folders

if TYPE_CHECKING:
    from edgeopt.publish.places import Places
    from edgeopt.publish.remote import Remote


@app.command()
def verify(
    target: Annotated[
        str | None, typer.Argument(metavar="[FOLDER]", help="A pulled folder; or use --all.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Verify every file of the library and of the store.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option("--require-signature", metavar="KEY", help="A public key (PEM).")
    ] = None,
    library: Library = None,
    store: StoreFolder = None,
) -> None:
    """Verify digests and signature of local files. Exit code 1: something was changed or is missing."""
    from edgeopt.errors import UsageError
    from edgeopt.publish.care import verify_all
    from edgeopt.publish.pulling import check_folder, check_unbuilt
    from edgeopt.run.store import store_folder

    places = places_of(library)
    if everything == (target is not None):
        raise UsageError("nothing to verify", fix="give either a pulled FOLDER or --all")
    if target is not None:
        folder = Path(target)
        if not folder.is_dir():
            raise UsageError(
                f"{target} is not a folder", fix="pull the release first and verify its folder, or use --all"
            )
        contract = check_folder(folder)
        key = key or places.settings.require_signature
        if key is not None:
            from edgeopt.publish.trust.signing import verify as check_signature

            check_unbuilt(folder)
            check_signature(folder, key)
        signature = "verified" if key else "not checked (--require-signature KEY)"
        typer.echo(f"{folder}: {contract.name}@{contract.version}, digests verified, signature {signature}")
        return
    faults = verify_all(places, store_folder(store))
    for fault in faults:
        typer.echo(f"{fault.where}: {fault.what}")
    if faults:
        raise typer.Exit(1)
    names = ", ".join(places.names()) or "an empty library"
    typer.echo(f"{names} and the store: all digests verified")


@app.command()
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME@VERSION", help=NAME_HELP)],
    channel: Annotated[str, typer.Option("--channel", help="The channel to point at it.")] = "stable",
    who: Who = "",
    library: Library = None,
) -> None:
    """Point a channel at a version. Exit code 1: a gate of its run did not pass."""
    from edgeopt.errors import UsageError
    from edgeopt.publish.channels import promote as promote_channel
    from edgeopt.publish.names import check_channel, parse
    from edgeopt.publish.transfer import find_release

    places = places_of(library)
    reference = parse(name)
    if reference.channel == "stable" and not name.endswith(":stable"):
        raise UsageError(f"{name} does not name a version", fix=f"edgeopt artifacts promote {name}@VERSION")
    source = places.source(reference)
    with places.held(reference.name):
        release = find_release(source, reference)
        promote_channel(source, check_channel(channel), release.version, who=who)
        _follow_here(places, reference.name, source, channel)
    typer.echo(f"{reference.name}:{channel} is now {release.version}  {source.url}")


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help=NAME_HELP)],
    channel: Annotated[str, typer.Option("--channel", help="The channel to move back.")] = "stable",
    who: Who = "",
    library: Library = None,
) -> None:
    """Move a channel back to the version it pointed at before. The move is recorded in its history."""
    from edgeopt.publish.channels import rollback as rollback_channel
    from edgeopt.publish.names import check_channel, parse

    places = places_of(library)
    reference = parse(name)
    source = places.source(reference)
    with places.held(reference.name):
        move = rollback_channel(source, check_channel(channel), who=who)
        _follow_here(places, reference.name, source, channel)
    typer.echo(f"{reference.name}:{channel} is {move.version} again  {source.url}")


@app.command()
def gc(
    keep_last: Annotated[
        int, typer.Option("--keep-last", min=0, help="Versions to keep per name, and runs per recipe.")
    ] = 5,
    keep_channels: Annotated[
        bool,
        typer.Option(
            "--keep-channels/--channels-now",
            help="Also keep the versions that channels can be rolled back to, or only the current ones.",
        ),
    ] = True,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the files; without it, they are only listed.")
    ] = False,
    baselines: Annotated[
        list[Path] | None,
        typer.Option("--baseline", help="Keep the artifacts of this baseline (default: baseline.json)."),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of runs.")] = Path("artifacts/runs"),
    library: Library = None,
    store: StoreFolder = None,
) -> None:
    """List what can be removed from artifacts/, and remove it with --delete.

    The versions that channels point at and the artifacts of baselines are always kept, and so are cached
    results used within the last day: a running command may need them.
    """
    from edgeopt.evaluation.baseline import read_baseline
    from edgeopt.publish.care import collect
    from edgeopt.run.store import store_folder

    places = places_of(library)
    default = [Path("baseline.json")] if Path("baseline.json").is_file() else []
    files = [*(baselines or default), *places.settings.baselines]
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
    for item in garbage:
        typer.echo(f"{item.size_bytes / 1e6:10,.1f} MB  {item.what}")
    total = sum(item.size_bytes for item in garbage) / 1e6
    outcome = "removed" if delete else "can be removed with --delete"
    typer.echo(f"{total:10,.1f} MB  {outcome}" if garbage else "nothing to remove")


@app.command(cls=Command)
def reproduce(
    target: Annotated[str, typer.Argument(metavar="NAME_OR_FOLDER", help=f"A pulled folder, or {NAME_HELP}")],
    device: Annotated[str, typer.Option("--device", help="With a NAME: the device of the bundle.")] = "host",
    variant: Annotated[str | None, typer.Option("--variant", help="With a NAME: the variant.")] = None,
    format_name: Annotated[str | None, typer.Option("--format", help="With a NAME: the format.")] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--beside", help="Folder for relative paths of the recipe (default: the working directory)."
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Store to use (default: a temporary one).")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Allow the recipe to run code from outside the given folders.")
    ] = False,
    data_root: DataRoot = None,
    devices: DeviceFolders = None,
    library: Library = None,
    as_json: AsJson = False,
) -> None:
    """Rebuild an artifact from the recipe in its bundle, and compare the two.

    Exit code 0: the same bytes, or the same graph and tensors. 1: different. 2: model or data are not the
    recorded ones.
    """
    import tempfile

    from edgeopt.cli.screen.progress import Progress
    from edgeopt.commands.reproduce import reproduce as rebuild
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
                device_name, board = described(device, folders(devices))
                choice = pick(release.index, device_name, board, variant, format_name)
                if source.url != shelf.url:
                    fetch_bundle(release, choice.descriptor, source, shelf, places.root / reference.name)
                folder = place(release, choice, shelf, Path(scratch) / "bundle").folder
        with Progress(kept=store is not None) as progress:
            reproduction = rebuild(
                folder,
                store=store,
                data_root=data_root,
                beside=beside or [Path.cwd()],
                trust=trust,
                watch=progress,
            )
    if as_json:
        typer.echo(reproduction.model_dump_json(indent=2))
    else:
        typer.echo(str(reproduction))
    raise typer.Exit(reproduction.exit_code)


def _follow_here(places: "Places", name: str, source: "Remote", channel: str) -> None:
    """Mirror the move of a remote channel in the local library, for offline use."""
    from edgeopt.publish.channels import follow

    if name in places.names() and places.library(name).url != source.url:
        follow(source, places.library(name), channel)
