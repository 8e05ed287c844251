"""Squares whose root is taken, and cubes inside a tanh, in a TFLite graph."""

from edgeopt.formats import powers as power_steps
from edgeopt.formats.tflite.files.graphs import graphs_of
from edgeopt.formats.tflite.files.model_file import TfliteFile

KINDS = {
    **{name.upper(): name for name in ("add", "sub", "mul", "div", "mean", "tanh")},
    **dict.fromkeys(("RESHAPE", "BROADCAST_TO", "SQUEEZE", "EXPAND_DIMS"), "shape"),
    **dict.fromkeys(("SQRT", "RSQRT"), "root"),
    "MAXIMUM": "max",
    "SUM": "mean",
    "POW": "inverse",
}


def powers(file: TfliteFile) -> list[str]:
    """The outputs of the operators that `edgeopt.formats.powers.powers` finds in the main graph."""
    operations = graphs_of(file)[0].operations
    steps = []
    for each in operations:
        computed = tuple(tensor.number for tensor in each.present if not tensor.is_constant)
        # A division of a constant is the reciprocal of what it divides by.
        inverts = each.kind == "DIV" and len(computed) == 1 and each.present[0].is_constant
        kind = "inverse" if inverts else KINDS.get(each.kind, "")
        steps.append(power_steps.Step(kind, computed, each.outputs[0].number if each.outputs else None))
    return [operations[at].outputs[0].name for at in power_steps.powers(steps)]
