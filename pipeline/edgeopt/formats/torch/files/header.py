"""Inputs, outputs and operators of a torch exported program (``.pt2``), read without torch.

Sources: torch/export/pt2_archive for the archive, torch/_export/serde/schema.py for its JSON.
"""

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from edgeopt.errors import UsageError
from edgeopt.formats.specs import tensor
from edgeopt.formats.wire import bounded
from edgeopt.model import Model, TensorSpec
from edgeopt.plugin.contents import Source

DTYPES = {
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


def weight_names(path: Path) -> tuple[str, ...]:
    """The names of the parameters of the exported module, such as ``layer1.0.conv1.weight``.

    Raises as ``read``.
    """
    parameters = (entry.get("parameter") for entry in _module(path)["signature"]["input_specs"])
    return tuple(str(each["parameter_name"]) for each in parameters if each is not None)


def _module(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        programs = sorted(
            name
            for name in bounded.member_names(archive)
            if name.endswith(".json") and name.partition("/")[2].startswith("models/")
        )
        if not programs:
            raise UsageError(
                f"{path} was written by an older torch: it contains no models/*.json",
                fix="load it with that version and export it again with torch >= 2.9",
            )
        if len(programs) > 1:
            names = ", ".join(Path(name).stem for name in programs)
            raise UsageError(f"{path} contains several programs: {names}", fix="save each to its own file")
        return bounded.json_member(archive, programs[0])["graph_module"]


def read(path: Path) -> Source:
    """Read the model in a ``.pt2`` archive.

    Raises:
        UsageError: the archive was written by an older torch, or contains several programs.
    """
    module = _module(path)
    graph, signature = module["graph"], module["signature"]
    notes = []

    def specs(side: str, key: str) -> tuple[TensorSpec, ...]:
        described = []
        for entry in signature[side]:
            argument = entry.get(key, {}).get("arg", {})
            name = argument.get("as_tensor", {}).get("name")
            if name is not None:
                value = graph["tensor_values"][name]
                # A size that is not a plain integer is symbolic, so the axis is free.
                shape = tuple(size.get("as_int") for size in value["sizes"])
                described.append(tensor(name, shape, DTYPES.get(value["dtype"], "unknown"), "NCHW"))
            elif key in entry:
                notes.append(f"a {key.replace('_', ' ')} is not a tensor: {', '.join(argument) or 'nothing'}")
        return tuple(described)

    model = Model(
        format="exported_program",
        path=path,
        inputs=specs("input_specs", "user_input"),
        outputs=specs("output_specs", "user_output"),
    )
    operators = Counter(str(node["target"]).split(".")[-2:][0] for node in graph["nodes"])
    return Source(model=model, framework="torch", notes=tuple(notes), layers=dict(operators))
