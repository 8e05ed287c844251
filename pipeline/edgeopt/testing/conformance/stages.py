"""Stages: same bytes in a fresh process, writes below its folder only, truthful specs, honest conversion."""

from edgeopt.evaluation.comparison import hop
from edgeopt.model import Model
from edgeopt.plugin import Stage
from edgeopt.recipe.planner import instance
from edgeopt.testing.conformance.options import demand
from edgeopt.testing.workshop import Workshop


def check_stage(stage: Stage | type[Stage], workshop: Workshop) -> None:
    """Same bytes in a fresh process, writes below its folder only, truthful specs, honest ``lossless``.

    Raises:
        Nonconformance: it does not keep to this.
    """
    for format in sorted(stage.accepts):
        given = instance(stage, (), workshop.part(format)) if isinstance(stage, type) else stage
        if format == min(stage.accepts):
            demand(
                given.options() == type(given).model_validate(given.model_dump()).options(),
                f"{type(given).__name__}: its options read again are other ones",
            )
        _check_stage(given, workshop.model(format), workshop)


def _check_stage(stage: Stage, before: Model, workshop: Workshop) -> None:
    name = f"{type(stage).__name__} on {before.format}"
    first = workshop.run(stage, before)
    demand(not first.outside, f"{name} writes outside of its folder: {', '.join(first.outside[:5])}")
    again = workshop.run(stage, before, process=1)
    demand(first.digest == again.digest, f"{name} gives other bytes in another process")
    demand(
        (first.model.inputs, first.model.outputs) == (again.model.inputs, again.model.outputs),
        f"{name} tells other inputs and outputs in another process",
    )
    after = first.model
    demand(after.format == stage.produces, f"{name} promises {stage.produces}, and gives {after.format}")
    demand(bool(after.inputs), f"{name} does not tell the inputs of its result")
    found = workshop.outputs(after)
    if found is None:
        return
    if after.outputs:
        told = [spec.shape[1:] for spec in after.outputs]
        demand(
            told == [tuple(array.shape[1:]) for array in found],
            f"{name} tells outputs of shapes {told}, it gives {[array.shape[1:] for array in found]}",
        )
    if stage.fulfils:
        return
    reference = workshop.outputs(before)
    if reference is None:
        return
    demand(len(reference) == len(found), f"{name}: {len(reference)} outputs became {len(found)}")
    for index, (old, new) in enumerate(zip(reference, found, strict=True)):
        judged = hop(name, after.format, lossless=True, before=old, after=new)
        demand(
            judged.status == "ok",
            f"{name} fulfils no intent, so it must keep the outputs; output {index}: {judged.reason}",
        )
