"""Inputs, outputs and operators of a torch exported program (``.pt2``), read without torch.

The archive: torch/export/pt2_archive; its JSON: torch/_export/serde/schema.py.
"""

import zipfile
from collections import Counter
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.formats.specs import tensor
from edgeopt.formats.wire import bounded
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin.contents import Source

TYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
}


def read(path: Path) -> Source:
    """The model in a ``.pt2`` archive.

    Raises:
        UsageError: it was written by an older torch, or holds several programs.
    """
    with zipfile.ZipFile(path) as archive:
        programs = sorted(
            name
            for name in bounded.member_names(archive)
            if name.endswith(".json") and name.partition("/")[2].startswith("models/")
        )
        if not programs:
            raise UsageError(
                f"{path} was written by an older torch: it has no models/*.json inside",
                fix="load it there and save it again with torch >= 2.9",
            )
        if len(programs) > 1:
            names = ", ".join(Path(name).stem for name in programs)
            raise UsageError(f"{path} holds several programs: {names}", fix="save each to a file of its own")
        module = bounded.json_member(archive, programs[0])["graph_module"]
    graph, signature = module["graph"], module["signature"]
    notes = []

    def specs(side: str, key: str) -> tuple[TensorSpec, ...]:
        found = []
        for entry in signature[side]:
            argument = entry.get(key, {}).get("arg", {})
            name = argument.get("as_tensor", {}).get("name")
            if name is not None:
                value = graph["tensor_values"][name]
                # A size that is no plain number is symbolic: free.
                shape = tuple(size.get("as_int") for size in value["sizes"])
                found.append(tensor(name, shape, TYPES.get(value["dtype"], "unknown"), "NCHW"))
            elif key in entry:
                notes.append(f"a {key.replace('_', ' ')} is not a tensor: {', '.join(argument) or 'nothing'}")
        return tuple(found)

    model = Model(
        format="exported_program",
        path=path,
        inputs=specs("input_specs", "user_input"),
        outputs=specs("output_specs", "user_output"),
    )
    operators = Counter(str(node["target"]).split(".")[-2:][0] for node in graph["nodes"])
    return Source(model=model, framework="torch", notes=tuple(notes), layers=dict(operators))
