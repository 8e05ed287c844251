"""``artifacts list`` and ``show``: what has been published."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.artifacts.bundles import NAME_HELP, Library, Name, Offline, app, places_of
from edgeopt.cli.options import AsJson

if TYPE_CHECKING:
    from edgeopt.publish.selecting import Facts


@app.command("list")
def list_releases(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help=NAME_HELP)] = None,
    offline: Offline = False,
    library: Library = None,
    as_json: AsJson = False,
) -> None:
    """List the versions of a name, newest first, with its channels; without a name, the local library."""
    from edgeopt.publish.listing import versions
    from edgeopt.publish.names import parse

    places = places_of(library)
    releases = {}
    for listed in [name] if name else places.names():
        reference = parse(listed)
        source = places.source(reference, offline=offline or name is None)
        releases[reference.name] = (source.url, versions(source))
    if as_json:
        listing = [
            {"name": known, "place": place, "versions": [row.model_dump() for row in rows]}
            for known, (place, rows) in releases.items()
        ]
        typer.echo(json.dumps(listing, indent=2))
        return
    for known, (place, rows) in releases.items():
        typer.echo(f"{known}  {place}")
        for row in rows:
            typer.echo(f"  {row}")
    if not releases:
        typer.echo("the library is empty: artifacts pull URL fetches a release, push RUN publishes a run")


@app.command()
def show(name: Name, offline: Offline = False, library: Library = None, as_json: AsJson = False) -> None:
    """Show one version: its bundles with their measurements, and the history of its channels."""
    from edgeopt.publish.channels import history, standing
    from edgeopt.publish.names import parse
    from edgeopt.publish.selecting import bundles
    from edgeopt.publish.transfer import find_release

    places = places_of(library)
    reference = parse(name)
    source = places.source(reference, offline=offline)
    release = find_release(source, reference)
    rows = bundles(release.index)
    moves = {channel: history(source, channel) for channel in standing(source)}
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "name": reference.name,
                    "version": release.version,
                    "digest": release.descriptor.digest,
                    "annotations": release.index.annotations,
                    "bundles": [facts.model_dump() | {"digest": each.digest} for each, facts in rows],
                    "channels": {key: [move.model_dump() for move in log] for key, log in moves.items()},
                },
                indent=2,
            )
        )
        return
    typer.echo(f"{reference.name}@{release.version}  {release.descriptor.digest}")
    for key, value in sorted(release.index.annotations.items()):
        typer.echo(f"  {key:<36} {value}")
    for _, facts in rows:
        measured = ", ".join(_measurement_text(key, facts) for key in facts.measurements)
        typer.echo(
            f"  {facts.variant + '.' + facts.format:<26} {facts.device:<20} {facts.size_bytes:>11,} bytes  "
            f"gates {facts.gates:<4}  {measured}"
        )
    for channel, log in moves.items():
        typer.echo(f"  :{channel}")
        for move in log:
            typer.echo(f"    {move.when}  {move.action:<8} {move.version}  {move.who}".rstrip())


def _measurement_text(name: str, facts: "Facts") -> str:
    """One measurement as text; the unit moves from the name to the number."""
    from edgeopt.results import Measurement

    title = name.removesuffix("_ms").removesuffix("_bytes").replace("_", " ")
    # Releases of earlier versions record only the number.
    return f"{title} {facts.texts.get(name) or Measurement.of(name, facts.measurements[name]).text}"
