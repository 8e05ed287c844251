"""``lint``: will a file run on a device?"""

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import AsJson, DeviceFolders, folders

FOUND = 1


def lint(
    file: Annotated[
        Path, typer.Argument(help="A .tflite file; of other formats only the size is looked at.")
    ],
    device: Annotated[
        str, typer.Option("--device", help="The device it shall run on; see 'edgeopt devices list'.")
    ],
    devices: DeviceFolders = None,
    sarif: Annotated[
        Path | None, typer.Option("--sarif", help="Also write SARIF 2.1.0 here, for code scanning.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether a model file will run on a device, without the device.

    Operators, their versions and types, and the size are held against what the device's runtime has. Exit
    code 1 when it will not run, 0 when nothing speaks against it; warnings change nothing.
    """
    import json

    from edgeopt.devices.device import load_device
    from edgeopt.devices.lint import errors, shortened
    from edgeopt.devices.lint import lint as check
    from edgeopt.errors import StageError, UsageError
    from edgeopt.formats.source import recognise
    from edgeopt.reports import sarif as sarifs

    target = load_device(device, folders(devices))
    format_name = recognise(file).name
    if format_name not in target.runtimes:
        raise UsageError(
            f"device {target.name} has no runtime for {format_name}",
            fix=f"it runs {', '.join(target.runtimes)}",
        )
    try:
        findings = check(file, target, format_name)
    except StageError as error:
        raise UsageError(error.message, fix=error.fix) from error
    wrong = errors(findings)
    if sarif is not None:
        try:
            sarif.write_text(sarifs.render(findings, file, target.name), "utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {sarif}: {error.strerror}", fix="give another file") from error
    if as_json:
        told = [finding.model_dump(mode="json") for finding in findings]
        typer.echo(json.dumps({"file": str(file), "device": target.name, "findings": told}, indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.severity}: {shortened(finding.layer) or file.name} [{finding.rule}]")
            typer.echo(f"  {finding.message}\n  {finding.fix}")
        if not findings:
            known = target.operators or "no table of operators"
            typer.echo(f"{file.name} on {target.name}: nothing speaks against it ({known})")
    if wrong:
        raise typer.Exit(FOUND)
