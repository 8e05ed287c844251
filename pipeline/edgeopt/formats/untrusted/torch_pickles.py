"""Scan for code that loading a torch checkpoint would run; its pickles are parsed, never loaded.

The allow-list is that of ``torch.load(weights_only=True)``: torch/_weights_only_unpickler.py of torch 2.13.
"""

from __future__ import annotations

import io
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from contextlib import ExitStack
from pathlib import Path
from typing import IO

PICKLE_LIMIT = 64 << 20
"""Largest pickle to scan, in bytes; tensors are stored outside the pickle, so real ones are small."""
INSTRUCTION = "the pickle instruction "
"""Prefix of the opcodes among the results of ``refused``."""


def refused(path: Path, *, legacy: bool) -> list[str]:
    """Globals and opcodes in a checkpoint that ``weights_only=True`` rejects, in the order of the file.

    Args:
        path: the checkpoint.
        legacy: the format from before torch 1.6, a sequence of pickles instead of an archive.

    Returns:
        Full names of globals, and opcodes prefixed with ``INSTRUCTION``, each once.
    """
    with open(str(path), "rb") as stream:
        return _refused(stream, legacy)


def refused_inside(content: bytes) -> list[str]:
    """The same for a checkpoint inside another archive, such as the example inputs of a program."""
    stream = io.BytesIO(content)
    return _refused(stream, not zipfile.is_zipfile(stream))


def most_informative(found: list[str]) -> list[str]:
    """The globals among the results of ``refused``; opcodes are rejected only as they could hide a name."""
    return [name for name in found if not name.startswith(INSTRUCTION)] or found


def _refused(stream: IO[bytes], legacy: bool) -> list[str]:
    rejected: dict[str, None] = {}
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # about invalid escapes in the pickle's strings
        stream.seek(0)
        if legacy:
            bounded = Bounded(stream)
            # Magic number, protocol version, system information, the object, and its storage keys.
            for _ in range(5):
                try:
                    rejected.update(_scan(bounded))
                except ValueError:
                    if not rejected:
                        raise
                    break  # what was found matters more than the damage
            return list(rejected)
        archive = stack.enter_context(zipfile.ZipFile(stream))
        for name in sorted(set(archive.namelist())):
            if name.partition("/")[2].lower() == "data.pkl":
                with archive.open(name) as member:
                    rejected.update(_scan(Bounded(member)))
    return list(rejected)


class Bounded:
    """A stream for ``pickletools`` that limits the number of bytes read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = PICKLE_LIMIT

    def _count(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise ValueError(f"the pickle is larger than the {PICKLE_LIMIT >> 20} MiB allowed")
        return piece

    def read(self, size: int = -1) -> bytes:
        return self._count(self._stream.read(self._left + 1 if size < 0 else min(size, self._left + 1)))

    def readline(self) -> bytes:
        return self._count(self._stream.readline(self._left + 1))


def _scan(stream: Bounded) -> dict[str, None]:
    rejected: dict[str, None] = {}
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            if opcode.name == "STACK_GLOBAL":
                # STACK_GLOBAL takes its names from the stack: usually the last two strings. A memo lookup
                # would hide them, which is why the opcode itself is rejected below.
                module, name = strings[-2:] if len(strings) > 1 else ["an unknown module", "unknown"]
            else:
                module, _, name = str(argument).partition(" ")
            full = _python_3_name(module, name)
            if full not in ALLOWED_GLOBALS:
                rejected[full] = None
            elif opcode.name != "GLOBAL":
                rejected[INSTRUCTION + opcode.name] = None
        elif opcode.name not in ALLOWED_INSTRUCTIONS:
            rejected[INSTRUCTION + opcode.name] = None
        # Strings of rejected opcodes count too: they may still name the next global.
        if isinstance(argument, str):
            strings = [*strings[-1:], argument]
    return rejected


def _python_3_name(module: str, name: str) -> str:
    # Unpickling maps Python 2 names in the same way; the list below has Python 3 names.
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


ALLOWED_INSTRUCTIONS = frozenset(
    "NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWFALSE "
    "NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1 BININT2 BINFLOAT BINUNICODE "
    "SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT LONG1 PROTO STOP".split()
)
_PLAIN = (
    "_codecs.encode builtins.bytearray builtins.complex builtins.set collections.Counter "
    "collections.OrderedDict torch.Size torch.Tensor torch.device torch.nn.parameter.Parameter "
    "torch.serialization._get_layout torch._tensor._rebuild_from_type_v2 torch.storage.TypedStorage "
    "torch.storage.UntypedStorage"
)
_REBUILD = (
    "device_tensor_from_cpu_tensor device_tensor_from_numpy meta_tensor_no_storage nested_tensor parameter "
    "parameter_with_state qtensor sparse_tensor tensor tensor_v2 tensor_v3 wrapper_subclass"
)
_DTYPES = (
    "bfloat16 bits16 bits1x8 bits2x4 bits4x2 bits8 bool complex128 complex32 complex64 float16 float32 "
    "float64 float4_e2m1fn_x2 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu "
    "int16 int32 int64 int8 qint32 qint8 quint2x4 quint4x2 quint8 uint16 uint32 uint64 uint8 "
    "per_channel_affine per_channel_affine_float_qparams per_channel_symmetric per_tensor_affine "
    "per_tensor_symmetric"
)
_STORED = tuple("BFloat16 Bool Byte Char Double Float Half Int Long Short".split())
_COMPLEX = ("ComplexDouble", "ComplexFloat")
_QUANTIZED = tuple("QInt32 QInt8 QUInt8 QUInt2x4 QUInt4x2".split())
_SPARSE = tuple(name for name in _STORED if name != "Bool")
ALLOWED_GLOBALS = frozenset(
    (
        *_PLAIN.split(),
        *(f"torch._utils._rebuild_{name}" for name in _REBUILD.split()),
        *(f"torch.{name}" for name in _DTYPES.split()),
        *(f"torch.{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
        *(f"torch.{name}Storage" for name in (*_STORED, *_COMPLEX, *_QUANTIZED)),
        *(f"torch.cuda.{name}Storage" for name in (*_STORED, *_COMPLEX)),
        *(f"torch.{place}{name}Tensor" for place in ("", "cuda.") for name in _STORED),
        *(f"torch.{place}sparse.{name}Tensor" for place in ("", "cuda.") for name in _SPARSE),
    )
)
"""Globals that ``torch.load(weights_only=True)`` of torch 2.13 accepts (torch/_weights_only_unpickler.py)."""
