"""``doctor``: the stages that can run with the installed packages."""

import typer

from edgeopt.cli.options import AsJson


def doctor(as_json: AsJson = False) -> None:
    """Show which stages can run here, and the packages that the others need."""
    import json
    import platform

    from edgeopt.config import registry
    from edgeopt.errors import install
    from edgeopt.plugin import Stage

    stages = {
        name: {"versions": stage.versions(), "missing": stage.missing(), "extra": stage.extra}
        for name, stage in registry.plugins(Stage).items()
    }
    if as_json:
        typer.echo(json.dumps({"python": platform.python_version(), "stages": stages}, indent=2))
        return
    typer.echo(f"Python {platform.python_version()} on {platform.platform()}")
    for name, stage in registry.plugins(Stage).items():
        if missing := stage.missing():
            fix = install(stage.extra) if stage.extra else f"pip install {' '.join(missing)}"
            typer.echo(f"✗ {name}: needs {', '.join(missing)}: {fix}")
        else:
            installed = ", ".join(f"{package} {version}" for package, version in stage.versions().items())
            typer.echo(f"✓ {name}: {installed or 'no packages needed'}")
