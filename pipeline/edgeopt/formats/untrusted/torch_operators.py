"""Operators of torch that only compute, by the namespace of their registration."""

from __future__ import annotations

NAMESPACES = frozenset(
    "aten prim prims quantized _quantized quantized_decomposed torchao onednn mkldnn mkldnn_prepacked "
    "prepacked sparse higher_order torchvision".split()
)
"""Namespaces of computations. Others send tensors to other processes, call Python, or read dumps."""

OUTSIDE = frozenset("save from_file rpc_sync rpc_async rpc_remote to_here PythonOp IgnoredPythonOp".split())
"""Operators of these namespaces that write or read a file, reach another process, or call Python.

An operator needs a text to name a file or a server: a test compares all operators of the installed torch that
take one with the reviewed ones.
"""


def allowed(namespace: str, name: str) -> bool:
    """Whether an operator, such as ``aten`` and ``add``, only computes."""
    return namespace in NAMESPACES and name not in OUTSIDE
