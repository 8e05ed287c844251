"""The inputs of a model: as its file declares them, as the user states them, or as the data has them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeopt.commands.start.given import Given
from edgeopt.errors import UsageError
from edgeopt.formats.source import weight_shapes
from edgeopt.model import TensorSpec
from edgeopt.recipe.starter.data import Parts
from edgeopt.recipe.starter.draft import EXAMPLE, Draft, guess
from edgeopt.recipe.starter.networks import network_named
from edgeopt.recipe.starter.shapes import FirstWeight, first_weight, proposed_shape

SIZE = 224
"""Stands for every free dimension of an input that is to be filled in."""
CHANNELS = (1, 3, 4)
"""Numbers of channels of images."""


def stated(given: Given, declared: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The inputs with the shapes that the user states."""
    shapes = [tuple(shape) for shape in given.shapes]
    if not shapes:
        return ()
    if declared and len(declared) != len(shapes):
        names = ", ".join(spec.name for spec in declared)
        raise UsageError(
            f"--shape is given {len(shapes)} times, and {given.model} has {len(declared)} inputs: {names}",
            fix="give one shape for each, in this order",
        )
    if declared:
        return tuple(
            spec.model_copy(update={"shape": shape}) for spec, shape in zip(declared, shapes, strict=True)
        )
    return _named(shapes)


def with_inputs(
    draft: Draft, parts: Parts | None, framework: str | None, given: Given, *, complete: bool
) -> Draft:
    """With all sizes of the inputs: as declared or stated, else those of the data, else to be filled in.

    Raises:
        UsageError: with ``complete``, some cannot be known.
    """
    specs = tuple(_without_batch(spec) for spec in draft.specs)
    if specs and not any(size is None for spec in specs for size in spec.shape[1:]):
        return draft if specs == draft.specs else replace(draft, inputs=specs)
    rows = parts.judging.shapes if parts is not None else ()
    if rows and not specs:
        found = _named([(1, *row) for row in rows])
        return replace(draft, inputs=tuple(map(_channels_first, found)) if framework == "torch" else found)
    first = first_of(draft.source, draft.factory) if draft.is_weights and not specs else None
    if first is not None and first.known and complete:
        how = f"from the first weights, {first}: {proposed_shape((), None, first)}. If it is another: --shape"
        return guess(replace(draft, inputs=_named([first.known])), "model.inputs", how)
    if rows and [len(row) for row in rows] == [len(spec.shape) - 1 for spec in specs]:
        return replace(draft, inputs=tuple(map(_of_row, specs, rows)))
    if complete:
        free = "; ".join(f"{spec.name} {list(spec.shape)}" for spec in specs)
        what = (
            f"leaves sizes of its inputs free: {free}"
            if specs
            else "does not declare the shapes of its inputs"
        )
        words = [
            word for spec in specs or (None,) for word in ("--shape", proposed_shape(given.data, spec, first))
        ]
        raise UsageError(
            f"{draft.source} {what}",
            fix=f"state them, once for each input: {given.command(*words)}",
        )
    if specs:
        filled = tuple(spec.model_copy(update={"shape": _filled(spec)}) for spec in draft.specs)
        why = f"artifacts have fixed sizes; {SIZE} replaces each dynamic dimension"
        return replace(draft, inputs=filled, doubtful=why)
    if first is not None:
        sizes = tuple(SIZE if isinstance(size, str) else size for size in first.shape)
        return replace(draft, inputs=_named([sizes]), doubtful=f"the shape (guessed from {first}) and name")
    whose = "network's input" if draft.is_weights else "input; the file does not declare them"
    return replace(draft, inputs=(EXAMPLE,), doubtful=f"the shape and name of the {whose}")


def first_of(weights: Path, factory: str | None) -> FirstWeight | None:
    """The first layer in a file of weights, by the code of what builds its network, if that is known."""
    file, colon, name = (factory or "").rpartition(":")
    network = network_named(Path(file), name) if colon and file.endswith(".py") else None
    return first_weight(weight_shapes(weights), network)


def _named(shapes: Sequence[tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    """Inputs of these shapes, with names of their own."""
    names = ["input"] if len(shapes) == 1 else [f"input_{index}" for index in range(len(shapes))]
    return tuple(
        _image_or_not(TensorSpec(name=name, shape=shape)) for name, shape in zip(names, shapes, strict=True)
    )


def _image_or_not(spec: TensorSpec) -> TensorSpec:
    """With the layout of an image, if it looks like one."""
    if len(spec.shape) != 4 or not {spec.shape[1], spec.shape[3]} & set(CHANNELS):
        return spec
    return spec.model_copy(update={"layout": "NCHW" if spec.shape[1] in CHANNELS else "NHWC"})


def _channels_first(spec: TensorSpec) -> TensorSpec:
    if spec.layout != "NHWC":
        return spec
    batch, height, width, channels = spec.shape
    return spec.model_copy(update={"shape": (batch, channels, height, width), "layout": "NCHW"})


def _of_row(spec: TensorSpec, row: Sequence[int]) -> TensorSpec:
    """With the sizes of a sample where it leaves them free."""
    sizes = (size or own for size, own in zip(spec.shape[1:], row, strict=True))
    return spec.model_copy(update={"shape": (1, *sizes)})


def _without_batch(spec: TensorSpec) -> TensorSpec:
    """The free axis of a state of several layers, ``[layers, batch, units]``, is the batch."""
    if len(spec.shape) < 3 or spec.shape[0] in (None, 1) or spec.shape[1] is not None:
        return spec
    return spec.model_copy(update={"shape": (spec.shape[0], 1, *spec.shape[2:])})


def _filled(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one sample; the free axis of a state of several layers, its second, is the batch."""
    fixed = [SIZE if size is None else size for size in spec.shape]
    for axis, size in enumerate(spec.shape[:2]):
        if size is None:
            fixed[axis] = 1
            break
    return tuple(fixed)
