"""``lint``: static check of model files against a device, and of recipes."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.cli.options import AsJson, DataRoot, DeviceFolders, device_names, folders

if TYPE_CHECKING:
    from edgeopt.devices.device import Device
    from edgeopt.devices.lint import Finding
    from edgeopt.publish.contract import Arena, Contract

ERRORS_FOUND = 1
RECIPES = (".yaml", ".yml")


def lint(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Recipes, models or bundles. Of .tflite, the operators are checked; of others, the size.",
        ),
    ],
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Target device of models; see 'edgeopt devices list'. Repeatable.",
            autocompletion=device_names,
        ),
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
    names = list(dict.fromkeys(device or ()))
    if models and not names:
        raise UsageError(f"{models[0]} is checked against a device", fix="name it: --device NAME")
    if sarif is not None and not len(models) == len(files) == len(names) == 1:
        raise UsageError(
            "--sarif describes one model on one device", fix="check each in a command of its own"
        )
    targets = [(name, load_device(name, folders(devices))) for name in names]
    checked: list[tuple[dict[str, Any], bool]] = []
    for file in files:
        if file.suffix in RECIPES:
            checked.append(_lint_recipe(file, data_root, folders(devices), show=not as_json))
        else:
            checked += [_lint_model(file, name, target, sarif, show=not as_json) for name, target in targets]
    if as_json:
        rows = [row for row, _ in checked]
        typer.echo(json.dumps(rows[0] if len(rows) == 1 else rows, indent=2))
    if any(failed for _, failed in checked):
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
    file: Path, name: str, target: "Device", sarif: Path | None, *, show: bool
) -> tuple[dict[str, Any], bool]:
    from edgeopt.config.files import writing
    from edgeopt.config.units import show_bytes
    from edgeopt.devices.budget import usage
    from edgeopt.devices.lint import errors, lint_measured, shortened
    from edgeopt.devices.lint import lint as check
    from edgeopt.errors import StageError, UsageError
    from edgeopt.formats.source import recognise
    from edgeopt.reports import sarif as sarifs

    if (bundle := _bundle(file)) is not None:
        file /= bundle.file.name
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
    arena = _measured_arena(file, target.runtimes[format_name])
    if arena is not None:
        size = arena.measured_bytes
        findings = lint_measured({"arena_bytes": {"value": size}}, target) + findings
        known = {"low": size, "high": size, "parts": f"{show_bytes(size)} for the arena ({arena.source})"}
        shares = [each.model_copy(update=known) if each.memory == "RAM" else each for each in used.shares]
        used = used.model_copy(update={"shares": tuple(shares)})
    if sarif is not None:
        with writing(sarif, "give another file"):
            sarif.write_text(sarifs.render(findings, file, target.name), "utf-8")
    if show:
        typer.echo(f"{file} on {target.name}: {_verdict(findings, target)}")
        for finding in findings:
            typer.echo(f"{finding.severity}: {shortened(finding.layer) or file.name} [{finding.rule}]")
            typer.echo(f"  {finding.message}\n  {finding.fix}")
        for share in used.shares:
            typer.echo(f"  {share}")
        if any(share.high is None for share in used.shares):
            measure = shlex.join(["edgeopt", "profile", str(file), "--device", name])
            typer.echo(f"  RAM is a lower bound, a run takes more; measure it: {measure}")
        if used.hint:
            typer.echo(f"  {used.hint}")
    row = {
        "file": str(file),
        "device": target.name,
        "findings": [finding.model_dump(mode="json") for finding in findings],
        "usage": used.model_dump(mode="json"),
    }
    return row, bool(errors(findings))


def _bundle(folder: Path) -> "Contract | None":
    """The contract of a bundle in a folder, if it has a manifest."""
    from edgeopt.errors import VerificationError
    from edgeopt.publish.contract import FILE, read_contract

    try:
        return read_contract((folder / FILE).read_bytes(), FILE)
    except (OSError, VerificationError):
        return None


def _measured_arena(file: Path, runtime: str) -> "Arena | None":
    """The arena that the manifest of a bundle states for a file in it, if this runtime was measured."""
    from edgeopt.config.files import file_digest

    contract = _bundle(file.parent)
    if contract is None or contract.compiled or contract.runtime.split()[:1] != [runtime]:
        return None
    return contract.arena if file.is_file() and contract.file.sha256 == file_digest(file) else None


def _verdict(findings: "Sequence[Finding]", target: "Device") -> str:
    """How many findings of which severity there are, in words."""
    if not findings:
        return f"no findings ({target.operators or 'no operator table'})"
    severities = [finding.severity for finding in findings]
    counts = {each: severities.count(each) for each in dict.fromkeys(severities)}
    told = ", ".join(f"{count} {each}{'s' if count > 1 else ''}" for each, count in counts.items())
    return f"{told}; it will not run" if "error" in counts else told
