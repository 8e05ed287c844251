"""``artifacts``: publish the artifacts of a run, and pull the matching one for a device."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.options import AsJson, Command, DeviceFolders, device_names, folders, format_names

if TYPE_CHECKING:
    from edgeopt.publish.places import Places

app = typer.Typer(
    help="Publish the artifacts of a run; pull and verify the one for a device.", no_args_is_help=True
)

NAME_HELP = (
    "NAME, NAME@VERSION or NAME:CHANNEL (default: :stable); or a URL, such as "
    "oci://registry.example.com/team/kws:stable, file:///srv/models/kws, s3://bucket/kws, https://…"
)
Name = Annotated[str, typer.Argument(metavar="NAME", help=NAME_HELP)]
Library = Annotated[
    Path | None,
    typer.Option(
        "--library",
        help="Folder of the local release library (default: artifacts/library).",
        envvar="EDGEOPT_LIBRARY",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Use the local library only.")]
Who = Annotated[str, typer.Option("--who", help="Author to record with the change (default: none).")]


@app.command()
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="URL",
            help="oci://HOST/NAME[:VERSION], s3://BUCKET/NAME or file:///FOLDER/NAME; default: the project "
            "file's remote, else the local library only.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Default: the recipe's name.")] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Default: the date and digest of the run.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--sign", metavar="KEY", help="Sign every bundle with this private key (PEM)."),
    ] = None,
    channel: Annotated[
        str | None, typer.Option("--channel", help="Also promote it to this channel if its gates pass.")
    ] = None,
    variants: Annotated[
        list[str] | None, typer.Option("--variant", metavar="NAME", help="Publish only this variant.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", metavar="NAME", help="Publish only this format.", autocompletion=format_names
        ),
    ] = None,
    devices: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Publish only what was measured on this device.",
            autocompletion=device_names,
        ),
    ] = None,
    who: Who = "",
    library: Library = None,
    as_json: AsJson = False,
) -> None:
    """Publish the finished artifacts of a run, all or those selected, as one immutable version.

    One bundle per artifact and device: the model, its input contract, golden vectors, the firmware kit and
    the provenance. An interrupted upload resumes where it stopped.
    """
    from edgeopt.cli.report import read_report
    from edgeopt.cli.screen.transfers import Transfer
    from edgeopt.config.text import as_name
    from edgeopt.errors import UsageError
    from edgeopt.publish.channels import follow
    from edgeopt.publish.channels import promote as promote_channel
    from edgeopt.publish.names import check_channel, check_name, check_version, parse
    from edgeopt.publish.oci import FAILED
    from edgeopt.publish.release import make_release
    from edgeopt.publish.transfer import bytes_of, mirror

    report = whole = read_report(run)
    if variants or formats or devices:
        from edgeopt.commands.judge import part_of
        from edgeopt.recipe.selection import Selection

        selection = Selection(tuple(variants or ()), tuple(formats or ()), tuple(devices or ()))
        report = part_of(whole, selection, with_float=False)
    if channel is not None:
        check_channel(channel)
    places = places_of(library)
    reference = parse(to) if to else None
    if reference is not None and reference.remote is None:
        raise UsageError(f"--to {to}: give a URL", fix="such as oci://registry.example.com/team/kws")
    if reference is not None and reference.version and version and reference.version != version:
        raise UsageError(
            f"--to names version {reference.version}, --version {version}", fix="give only one of them"
        )
    short = check_name(name) if name else reference.name if reference else as_name(report.recipe)
    version = version or (reference.version if reference else None)
    target = places.remote(reference or parse(short))
    shelf = places.library(short)
    with Transfer(f"packaging {short}") as transfer, shelf.locked(exclusive=False):
        release = make_release(
            run if run.is_dir() else run.parent,
            report,
            shelf,
            name=short,
            version=check_version(version) if version else None,
            key=key,
            who=who,
            is_part=len(report.results) < len(whole.results),
            say=transfer.say,
        )
        if target is not None:
            transfer.begin(f"pushing to {target.url}", bytes_of(release, shelf))
            mirror(release, shelf, target, transfer.advance)
    summary = {
        "name": short,
        "version": release.version,
        "digest": release.descriptor.digest,
        "bundles": len(release.index.manifests),
        "remote": target.url if target else None,
    }
    if not as_json:
        place = target.url if target else f"{shelf.url} (this machine)"
        typer.echo(f"{short}@{release.version}: {len(release.index.manifests)} bundles in {place}")
        typer.echo(f"  {release.descriptor.digest}")
        for row in report.results:
            if row.status != "ok":
                reason = row.reason.partition("\n")[0]
                typer.echo(f"  not published: {row.variant}.{row.format} on {row.device}: {reason}", err=True)
        if FAILED in release.index.annotations:
            typer.echo(f"  warning: {release.index.annotations[FAILED]}", err=True)
    if channel is not None:
        with places.held(short):
            promote_channel(target or shelf, channel, release.version, who=who)
            if target:
                follow(target, shelf, channel)
        summary["channel"] = channel
        if not as_json:
            typer.echo(f"  {short}:{channel} is now {release.version}")
    if as_json:
        typer.echo(json.dumps(summary, indent=2))


@app.command(cls=Command)
def pull(
    name: Name,
    device: Annotated[str, typer.Option("--device", help="Target device, or a device file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")],
    variant: Annotated[str | None, typer.Option("--variant", help="Variant to pull.")] = None,
    format_name: Annotated[str | None, typer.Option("--format", help="Format to pull.")] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--require-signature",
            metavar="KEY",
            help="Require a signature by this public key (PEM); default: the key of the project file.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the folder even if it holds other files.")
    ] = False,
    offline: Offline = False,
    devices: DeviceFolders = None,
    library: Library = None,
    as_json: AsJson = False,
) -> None:
    """Download the artifact for a device with its firmware kit; verified before it is installed.

    Exit code 0: installed. 1: a digest or the signature does not match. 2: no such release, or none for this
    device. 3: the download failed; received data is kept, and the next attempt resumes.
    """
    from edgeopt.cli.screen.transfers import Transfer
    from edgeopt.publish.channels import follow
    from edgeopt.publish.names import parse
    from edgeopt.publish.oci import FAILED, read_manifest
    from edgeopt.publish.pulling import described, directions, pick, place
    from edgeopt.publish.transfer import fetch_bundle, find_release

    places = places_of(library)
    reference = parse(name)
    key = key or places.settings.require_signature
    source = places.source(reference, offline=offline)
    shelf = places.library(reference.name)
    with shelf.locked(exclusive=False):
        release = find_release(source, reference)
        device_name, board = described(device, folders(devices))
        choice = pick(release.index, device_name, board, variant, format_name)
        if source is not shelf and source.url != shelf.url:
            manifest = read_manifest(source.manifest(choice.descriptor.digest), str(reference))
            with Transfer(f"pulling {reference.name}@{release.version}") as transfer:
                size = sum(blob.size for blob in (manifest.config, *manifest.layers))
                transfer.begin(f"pulling {reference.name}@{release.version}", size)
                fetch_bundle(
                    release,
                    choice.descriptor,
                    source,
                    shelf,
                    places.root / reference.name,
                    transfer.advance,
                )
            if reference.channel:
                follow(source, shelf, reference.channel)
        pulled = place(release, choice, shelf, out, key=key, replace=replace)
    contract = pulled.contract
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "folder": str(out),
                    "file": contract.file.name,
                    "files": [file.name for file in contract.model_files],
                    "version": release.version,
                    "digest": release.descriptor.digest,
                    "variant": contract.variant,
                    "format": contract.format,
                    "device": contract.device,
                    "reason": choice.reason,
                    "signature": "verified" if pulled.signed else "not asked for",
                    "removed": pulled.removed,
                },
                indent=2,
            )
        )
        return
    typer.echo(f"{out / contract.file.name}  {contract.size_bytes:,} bytes")
    emulated = " (emulated)" if contract.emulated else ""
    typer.echo(f"  {release}, {contract.variant}.{contract.format}: {choice.reason}{emulated}")
    typer.echo(f"  from {source.url}")
    if FAILED in release.index.annotations:
        failed = release.index.annotations[FAILED]
        typer.echo(f"  warning: {failed}", err=True)
    for line in directions(pulled, device_name, board):
        typer.echo(f"  {line}")
    if pulled.removed:
        counts = Counter(str(Path(*Path(name).parent.parts[:2])) for name in pulled.removed)
        counted = ", ".join(f"{folder} ({count})" for folder, count in sorted(counts.items()))
        typer.echo(f"  removed build outputs (files): {counted}")
    for other in choice.others[:4]:
        typer.echo(
            f"  available: --variant {other.variant} --format {other.format} ({other.size_bytes:,} bytes)"
        )
    signature = "verified" if pulled.signed else "not checked (--require-signature KEY)"
    typer.echo(f"  digests verified, signature {signature}")


def places_of(library: Path | None) -> "Places":
    from edgeopt.publish.places import Places
    from edgeopt.publish.project import find_project
    from edgeopt.run.store import ARTIFACTS

    settings = find_project(Path.cwd())
    return Places(library or settings.library or ARTIFACTS / "library", settings)
