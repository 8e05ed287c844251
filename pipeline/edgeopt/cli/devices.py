"""``devices``: the known devices, their state and their setup."""

from typing import Annotated

import typer

from edgeopt.cli.options import AsJson, Command, DeviceFolders, device_names, folders

app = typer.Typer(help="List, show, check and set up devices.", no_args_is_help=True)

MARKS = {"ready": "✓", "not ready": "✗", "unknown": "?"}

Name = Annotated[
    str, typer.Argument(help="A device; see 'edgeopt devices list'.", autocompletion=device_names)
]


@app.command("list", cls=Command)
def list_devices(devices: DeviceFolders = None) -> None:
    """List all devices, your own and the shipped ones, and which of them are ready for use.

    ✓ ready, ✗ not set up on this machine, ? unknown until it is reached: 'edgeopt devices check NAME'.
    """
    from edgeopt.config import absent
    from edgeopt.devices.device import known_devices, load_device
    from edgeopt.devices.readiness import readiness
    from edgeopt.errors import UsageError, install

    measures = absent.installed()
    places = folders(devices)
    for name in known_devices(places):
        try:
            device = load_device(name, places)
            ready = readiness(device)
            mark = MARKS[ready.state] if measures else "✗"
            based = f"; based on {device.base}" if device.base else ""
            description = device.description or f"no description{based}"
            if ready.state == "not ready":
                description += f" ({ready.reason})"
        except UsageError as error:
            mark, description = "✗", f"unusable: {error.message}"
        typer.echo(f"{mark} {name:<24} {description}")
    if not measures:
        typer.echo(
            f"nothing is measured without numpy, only checked by 'edgeopt lint': {install('numerics')}"
        )


@app.command(cls=Command)
def show(name: Name, devices: DeviceFolders = None) -> None:
    """Show a device's settings."""
    import yaml

    from edgeopt.devices.device import load_device

    device = load_device(name, folders(devices))
    typer.echo(yaml.safe_dump(device.model_dump(mode="json"), sort_keys=False), nl=False)


@app.command(cls=Command)
def check(name: Name, devices: DeviceFolders = None, as_json: AsJson = False) -> None:
    """Connect to a device and show its properties and runtimes, with a fix for each that is missing."""
    import json
    import tempfile
    from pathlib import Path

    from edgeopt.devices.device import load_device
    from edgeopt.errors import DeviceError
    from edgeopt.run.measuring.probe import check_requirements, probe_device

    device = load_device(name, folders(devices))
    with tempfile.TemporaryDirectory() as folder:
        probe = probe_device(device, Path(folder))
    if as_json:
        typer.echo(json.dumps(probe, indent=2))
        return
    for key, value in probe.items():
        if key != "runtimes" and value not in (None, "", []):
            typer.echo(f"{_title(key):<14} {_readable(key, value)}")
    runtimes = probe.get("runtimes", {})
    absent = []
    for format_name, runtime in device.runtimes.items():
        version = runtimes.get(runtime)
        typer.echo(f"{'✓' if version else '✗'} {format_name:<20} {runtime} {version or 'is not installed'}")
        absent += [] if version else [runtime]
    check_requirements(device, probe)
    if absent:
        raise DeviceError(
            f"device {name} lacks {', '.join(dict.fromkeys(absent))}",
            fix=f"edgeopt devices setup {name}" if device.setup.python else "install them on the device",
        )


@app.command(cls=Command)
def setup(name: Name, devices: DeviceFolders = None) -> None:
    """Create a device's Python environment with pinned packages. No other command installs packages."""
    from edgeopt.devices.device import connection_of, load_device

    device = load_device(name, folders(devices))
    connection_of(device).setup(device.setup.python, lambda text: typer.echo(text, err=True))


def _title(key: str) -> str:
    return key.removesuffix("_bytes").removesuffix("_c").removesuffix("_mhz").replace("_", " ")


def _readable(key: str, value: object) -> str:
    """One reported property as text, with its unit."""
    from edgeopt.config.units import show_bytes

    if isinstance(value, list | tuple):
        return ", ".join(_readable("", each) for each in value)
    if isinstance(value, dict):
        return " ".join(f"{_title(name)} {_readable(name, each)}" for name, each in value.items())
    if isinstance(value, float | int) and key.endswith("_bytes"):
        return show_bytes(value)
    unit = {"temperature_c": " °C", "frequency_mhz": " MHz"}.get(key, "")
    return f"{value:g}{unit}" if isinstance(value, float) else f"{value}{unit}"
