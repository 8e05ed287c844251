"""``lint``: static check of model files against a device, and of recipes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.cli.options import AsJson, DataRoot, DeviceFolders, folders

if TYPE_CHECKING:
    from edgeopt.devices.device import Device

ERRORS_FOUND = 1
RECIPES = (".yaml", ".yml")


def lint(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Recipes, or model files: .tflite, of which the operators are checked; of others, the size.",
        ),
    ],
    device: Annotated[
        str | None, typer.Option("--device", help="Target device of models; see 'edgeopt devices list'.")
    ] = None,
    devices: DeviceFolders = None,
    data_root: DataRoot = None,
    sarif: Annotated[
        Path | None,
        typer.Option("--sarif", help="Also write SARIF 2.1.0 of one model to this file, for code scanning."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check whether model files will run on a device, without the device, and whether recipes are valid.

    Of models, operators, their versions and types, and the size are compared with what the device's runtime
    supports; the output also states the share of flash and RAM. Of recipes, everything is checked that can be
    read, at its line; a file that is not here, such as data outside of a repository, is a warning.
    Exit code 1: a model will not run, or a recipe is invalid. 0: no errors; warnings do not change it.
    """
    import json

    from edgeopt.devices.device import load_device
    from edgeopt.errors import UsageError

    models = [file for file in files if file.suffix not in RECIPES]
    if models and device is None:
        raise UsageError(f"{models[0]} is checked against a device", fix="name it: --device NAME")
    if sarif is not None and (len(models) != 1 or len(files) != 1):
        raise UsageError("--sarif describes one model", fix="check each in a command of its own")
    target = load_device(device, folders(devices)) if device is not None else None
    rows: list[dict[str, Any]] = []
    failed = False
    for file in files:
        if file.suffix in RECIPES:
            row, bad = _lint_recipe(file, data_root, folders(devices), show=not as_json)
        else:
            assert target is not None  # there are models
            row, bad = _lint_model(file, target, sarif, show=not as_json)
        rows.append(row)
        failed = failed or bad
    if as_json:
        typer.echo(json.dumps(rows[0] if len(rows) == 1 else rows, indent=2))
    if failed:
        raise typer.Exit(ERRORS_FOUND)


def _lint_recipe(
    file: Path, data_root: Path | None, device_folders: tuple[Path, ...], *, show: bool
) -> tuple[dict[str, Any], bool]:
    from edgeopt.config.references import NO_FILE
    from edgeopt.errors import RecipeError
    from edgeopt.recipe.resolve import load_recipe

    found = []
    try:
        load_recipe(file, data_root=data_root, device_folders=device_folders)
    except RecipeError as error:
        for problem in error.problems:
            severity = "warning" if problem.message.startswith(NO_FILE) else "error"
            found.append({"severity": severity, **problem._asdict()})
    if show:
        for each in found:
            where = f"{each['path']}: " if each["path"] else ""
            place = f"{file}:{each['line']}:{each['column']}"
            typer.echo(f"{each['severity']}: {place}: {where}{each['message']}")
        if not found:
            typer.echo(f"{file}: no findings")
    return {"file": str(file), "findings": found}, any(each["severity"] == "error" for each in found)


def _lint_model(
    file: Path, target: "Device", sarif: Path | None, *, show: bool
) -> tuple[dict[str, Any], bool]:
    from edgeopt.config.files import writing
    from edgeopt.devices.budget import usage
    from edgeopt.devices.lint import errors, shortened
    from edgeopt.devices.lint import lint as check
    from edgeopt.errors import StageError, UsageError
    from edgeopt.formats.source import recognise
    from edgeopt.reports import sarif as sarifs

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
    if sarif is not None:
        with writing(sarif, "give another file"):
            sarif.write_text(sarifs.render(findings, file, target.name), "utf-8")
    if show:
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
    row = {
        "file": str(file),
        "device": target.name,
        "findings": [finding.model_dump(mode="json") for finding in findings],
        "usage": used.model_dump(mode="json"),
    }
    return row, bool(errors(findings))
