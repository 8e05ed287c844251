"""What a model file declares: its format, inputs and outputs, or that it holds weights alone."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edgeopt.commands.start.given import Given
from edgeopt.commands.start.inputs import first_of, stated
from edgeopt.config.references import Code
from edgeopt.errors import EdgeoptError, UsageError
from edgeopt.formats.known import artifact_formats, factory_format, identify
from edgeopt.formats.source import check_weights, inspect, is_weights, weight_shapes
from edgeopt.formats.wire.bounded import MALFORMED
from edgeopt.model import TensorSpec
from edgeopt.recipe.chains import reachable
from edgeopt.recipe.starter.data import parts_of
from edgeopt.recipe.starter.draft import Draft
from edgeopt.recipe.starter.factories import candidates
from edgeopt.recipe.starter.goals import Goal
from edgeopt.recipe.starter.shapes import proposed_shape


def of_file(
    given: Given, settings: Mapping[str, Any], goal: Goal | None, *, complete: bool
) -> tuple[Draft, str | None]:
    """What the file declares, and its framework."""
    path = given.model
    part = settings.get("model") or {}
    if not isinstance(part, dict):
        raise UsageError("--set model=...: give its keys one by one, such as model.trust=true")
    trust, code = part.get("trust") is True, part.get("code")
    if os.path.isdir(path) and identify(path) is None:
        raise _no_model(path)
    declared: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] | None = None
    factory = given.factory or part.get("factory")
    framework: str | None = "torch"
    if weights := is_weights(path):
        notes = check_weights(path, trust=trust)
        kind = factory_format()
        if factory is None and complete:
            raise _no_factory(path, given)
        factory = _code(str(factory), path) if factory is not None else None
    else:
        source = inspect(path, trust=trust, code=Path(code) if code else None)
        if factory is not None:
            raise UsageError(
                f"--factory is for a checkpoint, and {path} contains its network", fix="leave it out"
            )
        kind, notes, framework = source.model.format, source.notes, source.framework
        declared, outputs = source.model.inputs, source.model.outputs or None
    inputs = _described(part) or stated(given, declared)
    if inputs:  # what the file does not declare is known now
        notes = tuple(note for note in notes if "model.inputs" not in note)
    found = reachable(kind, ())
    targets = tuple(name for name in artifact_formats() if name in found)
    if set(targets) <= {kind}:
        raise UsageError(
            f"{path} is already {kind}: there is nothing to convert",
            fix=f"measure it: edgeopt profile {path}",
        )
    if goal is not None:
        usual = tuple(name for name in goal.formats if name in targets)
        if not usual:
            raise UsageError(
                f"--for {given.goal}: {kind} cannot be converted to {' or '.join(goal.formats)}",
                fix=f"leave --for out: it can be converted to {', '.join(targets)}",
            )
        targets = usual
    draft = Draft(
        path,
        targets,
        is_weights=weights,
        factory=factory,
        declared=declared,
        inputs=inputs,
        outputs=outputs,
        notes=tuple(notes),
        trust=trust,
    )
    return draft, framework


def _described(part: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    """The inputs that a setting gives."""
    try:
        return TypeAdapter(tuple[TensorSpec, ...]).validate_python(part.get("inputs") or ())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"--set model.inputs: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}",
            fix="such as --set 'model.inputs=[{name: image, shape: [1, 3, 32, 32], layout: NCHW}]'",
        ) from error


def _no_model(path: Path) -> UsageError:
    """The error for a folder that is no model; it names the models inside."""
    inside = []
    for each in sorted(path.iterdir()):
        try:
            known = identify(each)
        except (OSError, *MALFORMED):
            continue
        if known is not None and (known.is_model or known.weights_only):
            inside.append(each)
    if not inside:
        return UsageError(
            f"{path} is a folder without a model", fix="give a model file, or a SavedModel folder"
        )
    listed = ", ".join(each.name for each in inside[:5])
    return UsageError(
        f"{path} is a folder with {len(inside)} model{'s' * (len(inside) > 1)}: {listed}",
        fix=f"name one: edgeopt optimize {inside[0]}",
    )


def _no_factory(path: Path, given: Given) -> UsageError:
    weights = weight_shapes(path)
    found = candidates(Path(), path.parent, weights=weights)
    example = found[0].name if found else "my_network.py:build"
    known = f"; candidates here: {', '.join(map(str, found))}" if found else ""
    first = first_of(path, example)
    is_known = given.shapes or (first is not None and first.known) or _has_shape(given.data)
    shape = () if is_known else ("--shape", proposed_shape(given.data, None, first))
    also = ", and the shape of the input" if shape else ""
    return UsageError(
        f"{path} holds weights without the network: the function or class that builds it is missing{known}",
        fix=f"name it{also}: {given.command('--factory', example, *shape)}\n"
        f"  in a recipe: model: {{factory: {json.dumps(example)}, weights: {path.name}, inputs: [...]}}",
    )


def _has_shape(data: Sequence[Path]) -> bool:
    """Whether samples have the shape of the input, as arrays do, and images of any size do not."""
    try:
        return bool(data and parts_of(data, ()).judging.shapes)
    except EdgeoptError:  # said once the network is known
        return False


def _code(written: str, weights: Path) -> str:
    """A factory by the file that defines it, so that a recipe elsewhere finds it, too."""
    try:
        code = Code.model_validate(written, context={"roots": (Path.cwd(), weights.resolve().parent)})
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["ctx"]["error"]
        name, call, _ = written.partition("(")
        module, dot, last = name.rpartition(".")
        fix = "such as --factory my_network.py:build"
        if call:
            fix = f"without its arguments, which --set model.arguments.NAME=... gives: {name}"
        elif ":" not in name and dot and last != "py":
            fix = f"did you mean {module}:{last}?"
        raise UsageError(f"--factory {written}: {reason}", fix=fix) from error
    file = code.source()
    return code.target if file is None else f"{file}:{code.target.partition(':')[2]}"
