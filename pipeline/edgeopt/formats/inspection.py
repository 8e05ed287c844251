"""The byte ledger of any model file."""

from collections.abc import Callable
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.formats import ledger_archive
from edgeopt.formats.arithmetic import Ledger
from edgeopt.formats.kinds import identify
from edgeopt.formats.onnx.files import breakdown as ledger_onnx
from edgeopt.formats.tflite.files import breakdown as ledger_tflite
from edgeopt.formats.wire.bounded import MALFORMED

_READERS: dict[str, Callable[[Path], Ledger]] = {
    "tflite": ledger_tflite.read,
    "onnx": ledger_onnx.read,
    "executorch": ledger_archive.read_executorch,
    "hdf5": ledger_archive.read_hdf5,
    "safetensors": ledger_archive.read_safetensors,
    "legacy": ledger_archive.read_stream,
    "pickle": ledger_archive.read_stream,
}
_ZIPS = ("keras", "exported_program", "torchscript_module", "torchscript", "checkpoint")


def inspect(path: Path) -> Ledger:
    """Where the bytes of a file or folder go, found out by its content.

    Raises:
        UsageError: it is missing, empty, damaged or no model.
        StageError: a TFLite or ONNX file is damaged.
        MissingPackageError: reading it needs a package that is not installed.
    """
    if path.is_dir():
        return ledger_archive.read_folder(path)
    if not path.is_file():
        raise UsageError(f"no such file: {path}", fix="check the path")
    if not path.stat().st_size:
        raise UsageError(f"{path} is empty", fix="copy or save it again")
    try:
        kind = identify(path)
        if kind.name in _ZIPS:
            return ledger_archive.read_zip(path, kind.name)
        if kind.name in _READERS:
            return _READERS[kind.name](path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", fix="check the file") from error
    except MALFORMED as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UsageError(f"{path} is damaged: {why}", fix="copy or save it again") from error
    raise UsageError(f"{path} is not a model: it is {kind.words}", fix="give a model file")
