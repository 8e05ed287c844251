"""Which kind of file it is, told by its content: names lie more often than the first bytes."""

import zipfile
from pathlib import Path
from typing import NamedTuple

from edgeopt.formats.onnx.files.header import is_onnx
from edgeopt.formats.wire.bounded import member_names


class Kind(NamedTuple):
    """What the content of a file shows it to be."""

    name: str
    words: str


KERAS = Kind("keras", "a Keras archive (.keras)")
HDF5 = Kind("hdf5", "an HDF5 file (.h5)")
EXPORTED = Kind("exported_program", "a torch exported program (.pt2)")
SCRIPT = Kind("torchscript_module", "a TorchScript module (.pt)")
LITE = Kind("torchscript", "a TorchScript file for the lite interpreter (.ptl)")
CHECKPOINT = Kind("checkpoint", "a torch checkpoint (.pt, .pth)")
LEGACY = Kind("legacy", "a torch checkpoint in the format before 1.6 (.pt, .pth, .th)")
PICKLE = Kind("pickle", "a bare Python pickle")
SAFETENSORS = Kind("safetensors", "a safetensors file (.safetensors)")
TFLITE = Kind("tflite", "a TFLite file (.tflite)")
EXECUTORCH = Kind("executorch", "an ExecuTorch program (.pte)")
ONNX = Kind("onnx", "an ONNX file (.onnx)")
ZIP = Kind("zip", "a zip archive that holds no known model")
LFS = Kind("lfs", "a Git LFS pointer, the file itself was never fetched ('git lfs pull')")
HTML = Kind("html", "a web page, so the download went wrong")
UNKNOWN = Kind("unknown", "nothing that is known here")

BY_SUFFIX = {
    ".keras": KERAS,
    ".h5": HDF5,
    ".hdf5": HDF5,
    ".pt2": EXPORTED,
    ".ptl": LITE,
    ".safetensors": SAFETENSORS,
    ".tflite": TFLITE,
    ".pte": EXECUTORCH,
    ".onnx": ONNX,
}
"""What a file must be that is named so; other names are not looked at."""
WEIGHTS = (CHECKPOINT, LEGACY, SAFETENSORS)
"""Weights without a network."""


def identify(path: Path) -> Kind:
    """What the content of the file at ``path`` is; ``UNKNOWN`` where nothing fits.

    Raises:
        Exception: one of ``bounded.MALFORMED``, when an archive is damaged.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] == b"PK\x03\x04":
        return _identify_zip(path)
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return HDF5
    if head[4:8] == b"TFL3":
        return TFLITE
    if head[4:6] == b"ET" and head[6:8].isdigit():
        return EXECUTORCH
    if head.startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."):
        return LEGACY
    if head[:1] == b"\x80" and len(head) > 1 and 2 <= head[1] <= 5:
        return PICKLE
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return SAFETENSORS
    if head.startswith(b"version https://git-lfs"):
        return LFS
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return HTML
    return ONNX if is_onnx(path) else UNKNOWN


def _identify_zip(path: Path) -> Kind:
    with zipfile.ZipFile(path) as archive:
        names = member_names(archive)
    if names & {"config.json", "metadata.json", "model.weights.h5"}:
        return KERAS
    # Everything in an archive that torch wrote lies in one folder, which may have any name.
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or "serialized_exported_program.json" in names | inner:
        return EXPORTED
    if "bytecode.pkl" in inner:
        return LITE
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return SCRIPT
    return CHECKPOINT if "data.pkl" in inner else ZIP
