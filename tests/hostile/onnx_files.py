"""ONNX files whose tensors are stored outside their folder, wherever the format allows a tensor."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostile.case import SECRET, Case


def build(folder: Path, mark: Path) -> Iterator[Case]:
    """Build the files: each way to leave the folder, and each place of a tensor."""
    from onnx import TensorProto, helper

    def stored(location: str) -> Any:
        tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[16])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            tensor.external_data.add(key=key, value=value)
        return tensor

    def value(name: str, shape: list[int] | None) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def mean(weights: str, result: str) -> list[Any]:
        cast = helper.make_node("Cast", [weights], [f"{result}_f"], to=TensorProto.FLOAT)
        return [cast, helper.make_node("ReduceMean", [f"{result}_f"], [result], keepdims=0)]

    def save(name: str, nodes: list[Any], initializers: list[Any], **more: Any) -> Path:
        end = helper.make_node("Add", ["x", "m"], ["y"])
        ends = [value("x", [1, 4])], [value("y", [1, 4])]
        graph = helper.make_graph([*nodes, end], "g", *ends, initializer=initializers)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9, **more)
        path = folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    up = "../" * 20 + str(SECRET).lstrip("/")
    (folder / "link.bin").symlink_to(SECRET)
    locations = {
        "up": up,
        "up-inside": f"sub/{up}",
        "absolute": str(SECRET),
        "link": "link.bin",
        "windows": r"..\..\secret",
        "drive": r"C:\secret",
        "memory": "*/_ORT_MEM_ADDR_/*",
    }
    for name, location in locations.items():
        word = repr(location)
        yield Case(save(name, mean("w", "m"), [stored(location)]), word, allowed_by_trust=False)

    def constant(name: str) -> Any:
        return helper.make_node("Constant", [], [name], value=stored(up))

    def branch(name: str) -> Any:
        return helper.make_graph(
            [constant(f"{name}_w"), *mean(f"{name}_w", name)], name, [], [value(name, None)]
        )

    places: dict[str, Callable[[], Path]] = {
        "attribute": lambda: save("attribute", [constant("w"), *mean("w", "m")], []),
        "subgraph": lambda: save(
            "subgraph",
            [helper.make_node("If", ["c"], ["m"], then_branch=branch("a"), else_branch=branch("b"))],
            [helper.make_tensor("c", TensorProto.BOOL, [], [True])],
        ),
        "function": lambda: save(
            "function",
            [helper.make_node("Own", ["x"], ["m"], domain="mine")],
            [],
            functions=[
                helper.make_function(
                    "mine",
                    "Own",
                    ["a"],
                    ["b"],
                    [constant("w"), *mean("w", "b")],
                    [helper.make_opsetid("", 17)],
                )
            ],
        ),
    }
    for place in places.values():
        yield Case(place(), "outside the folder", allowed_by_trust=False)
