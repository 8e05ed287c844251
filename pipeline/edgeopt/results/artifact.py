"""A finished model: its file, the size of its parts, and the graph of its operators."""

from pydantic import Field

from edgeopt.results.measurement import Value


class LayerBytes(Value):
    """The size of the weights of one operator."""

    name: str
    kind: str = Field(description="operator type in the format")
    size_bytes: int
    macs: int | None = Field(None, description="multiply-accumulates of one inference, if known")


class GraphNode(LayerBytes):
    """One operator in the graph of a file; the size includes that of constants that only it reads."""

    reads: tuple[int, ...] = Field((), description="positions of the operators whose results it reads")


class Breakdown(Value):
    """The size of a file by part."""

    parts: dict[str, int] = Field(description="bytes by purpose; the sum is the size of the file")
    layers: tuple[LayerBytes, ...] = Field(
        (), description="operators with weights, largest first, if the format lists them"
    )
    graph: tuple[GraphNode, ...] = Field(
        (), description="all operators in file order, without conversions of types; empty for large graphs"
    )


class Artifact(Value):
    """A finished model. ``path`` is its main file or folder, relative to the folder of the report."""

    path: str
    digest: str = Field(description="sha256 of the file, or of all files if there are several")
    size_bytes: int
    breakdown: Breakdown | None = None
    parts: tuple[str, ...] = Field(
        (), description="further files beside the main file, or all files of a folder"
    )
