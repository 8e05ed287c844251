"""TFLite files as semantic graphs, independent of names and positions."""

from collections.abc import Hashable
from pathlib import Path

from edgeopt.formats.semantic_graph import Graph, Node, digest
from edgeopt.formats.tflite.files.model_file import data_of, kind_of, load
from edgeopt.formats.tflite.files.slimming import plain
from edgeopt.formats.wire.flatbuffer import Table, Vector


def graphs_of(path: Path) -> tuple[Graph, ...]:
    """The graphs of a TFLite file.

    Ignored: names, minimum and maximum from calibration, signatures, metadata, buffer numbers.

    Raises:
        StageError: the file is damaged.
    """
    model = load(path).model
    codes = [
        (kind_of(code), digest(code.integer("version", 1), code.text("custom_code")))
        for code in model.tables("operator_codes")
    ]
    buffers = [data_of(buffer) for buffer in model.tables("buffers")]
    return tuple(_graph(subgraph, codes, buffers) for subgraph in model.tables("subgraphs"))


def _graph(subgraph: Table, codes: list[tuple[str, str]], buffers: list[bytes]) -> Graph:
    constants: dict[Hashable, str] = {}
    facts: dict[Hashable, str] = {}
    for number, tensor in enumerate(subgraph.tables("tensors")):
        facts[number] = _facts(tensor)
        if content := buffers[tensor.integer("buffer")]:
            constants[number] = digest(facts[number], content)
    nodes = []
    for operator in subgraph.tables("operators"):
        kind, version = codes[operator.integer("opcode_index")]
        bare = operator.but("opcode_index", "inputs", "outputs", "debug_metadata_index")
        nodes.append(
            Node(
                kind,
                digest(version, plain(_without_empty(bare))),
                tuple(None if number < 0 else number for number in operator.numbers("inputs")),
                tuple(operator.numbers("outputs")),
            )
        )
    ends = tuple(subgraph.numbers("inputs")), tuple(subgraph.numbers("outputs"))
    return Graph(tuple(nodes), *ends, constants, facts)


def _facts(tensor: Table) -> str:
    bare = tensor.but("buffer", "name", "quantization", "shape_signature")
    quantization = tensor.table("quantization")
    parameters = quantization and quantization.but("min", "max")
    shape = tensor.numbers("shape_signature")
    return digest(
        plain(_without_empty(bare)),
        plain(_without_empty(parameters))
        if parameters and (parameters.numbers("scale") or parameters.table("details"))
        else None,
        tuple(shape) if shape != tensor.numbers("shape") else (),
    )


def _without_empty(table: Table) -> Table:
    """The table without empty vectors, which are equivalent to absent ones."""
    empty = [name for name, part in table.fields.items() if isinstance(part, Vector) and not part.data]
    return table.but(*empty)
