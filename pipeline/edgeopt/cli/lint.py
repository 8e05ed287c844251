"""``lint``: static check of a model file against a device."""

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import AsJson, DeviceFolders, folders

ERRORS_FOUND = 1


def lint(
    file: Annotated[Path, typer.Argument(help="A .tflite file; for other formats only the size is checked.")],
    device: Annotated[str, typer.Option("--device", help="Target device; see 'edgeopt devices list'.")],
    devices: DeviceFolders = None,
    sarif: Annotated[
        Path | None, typer.Option("--sarif", help="Also write SARIF 2.1.0 to this file, for code scanning.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check whether a model file will run on a device, without the device.

    Operators, their versions and types, and the size are compared with what the device's runtime supports;
    the output also states its share of flash and RAM.
    Exit code 1: it will not run. 0: no errors; warnings do not change the exit code.
    """
    import json

    from edgeopt.config.files import writing
    from edgeopt.devices.budget import usage
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
        used = usage(file, target, format_name)
    except StageError as error:
        raise UsageError(error.message, fix=error.fix) from error
    failures = errors(findings)
    if sarif is not None:
        with writing(sarif, "give another file"):
            sarif.write_text(sarifs.render(findings, file, target.name), "utf-8")
    if as_json:
        rows = [finding.model_dump(mode="json") for finding in findings]
        told = {
            "file": str(file),
            "device": target.name,
            "findings": rows,
            "usage": used.model_dump(mode="json"),
        }
        typer.echo(json.dumps(told, indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.severity}: {shortened(finding.layer) or file.name} [{finding.rule}]")
            typer.echo(f"  {finding.message}\n  {finding.fix}")
        if not findings:
            operators = target.operators or "no operator table"
            typer.echo(f"{file.name} on {target.name}: no findings ({operators})")
        for share in used.shares:
            typer.echo(f"  {share}")
        if used.hint:
            typer.echo(f"  {used.hint}")
    if failures:
        raise typer.Exit(ERRORS_FOUND)
