"""Contract of stages: reproducible files, no writes outside their folder, correct specs."""

from edgeopt.evaluation.hops import hop
from edgeopt.model import Model, Outputs
from edgeopt.plugin import Stage
from edgeopt.recipe.chains import instance
from edgeopt.testing.conformance.options import demand
from edgeopt.testing.workshop import Workshop


def check_stage(stage: Stage | type[Stage], workshop: Workshop) -> None:
    """Check that the stage is reproducible in another process and writes only to its folder.

    The declared inputs and outputs must be correct, and a stage without an intent must preserve the outputs.

    Raises:
        Nonconformance: the stage violates the contract.
    """
    for format in sorted(stage.accepts):
        configured = instance(stage, (), workshop.part(format)) if isinstance(stage, type) else stage
        if format == min(stage.accepts):
            demand(
                configured.options() == type(configured).model_validate(configured.model_dump()).options(),
                f"{type(configured).__name__}: its options change when read back",
            )
        check_on(configured, workshop.model(format), workshop)


def check_on(stage: Stage, before: Model, workshop: Workshop) -> None:
    """Like `check_stage`, on a model of the caller's.

    Raises:
        Nonconformance: as `check_stage`.
    """
    name = f"{type(stage).__name__} on {before.format}"
    first = workshop.run(stage, before)
    demand(not first.outside, f"{name} writes outside its folder: {', '.join(first.outside[:5])}")
    again = workshop.run(stage, before, process=1)
    demand(first.digest == again.digest, f"{name} writes different bytes in another process")
    demand(
        (first.model.inputs, first.model.outputs) == (again.model.inputs, again.model.outputs),
        f"{name} declares different inputs and outputs in another process",
    )
    after = first.model
    demand(after.format == stage.produces, f"{name} declares {stage.produces}, but produces {after.format}")
    demand(bool(after.inputs), f"{name} does not declare the inputs of its result")
    outputs = workshop.outputs(after)
    if outputs is None:
        return
    if after.outputs:
        declared = [spec.shape[1:] for spec in after.outputs]
        demand(
            declared == [tuple(array.shape[1:]) for array in outputs],
            f"{name} declares the output shapes {declared}, not {[array.shape[1:] for array in outputs]}",
        )
    if stage.fulfils:
        return
    reference = workshop.outputs(before)
    if reference is None:
        return
    comparison = hop(name, after.format, lossless=True, before=Outputs(reference), after=Outputs(outputs))
    demand(
        comparison.status == "ok",
        f"{name} fulfils no intent, so it must preserve the outputs: {comparison.reason}",
    )
