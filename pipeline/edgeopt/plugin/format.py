"""Formats: the kinds of model files, and the operations that each supports."""

import shutil
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

from edgeopt.config.files import CHUNK, content_digest, files_of
from edgeopt.config.registry import Kind, plugin_name
from edgeopt.errors import StageError, UsageError
from edgeopt.model import Array, Model
from edgeopt.plugin.base import Plugin, digest_of
from edgeopt.plugin.contents import Operator, SizeBreakdown, Source
from edgeopt.plugin.layer_pair import Pair
from edgeopt.plugin.stage import Worker
from edgeopt.plugin.synthesis import Synthesis

HEAD = 512
"""Bytes at the start of a file that are read to recognise it."""
MEMBERS = 100_000
"""Limit on the number of members of an archive."""


class FileHead:
    """The first bytes of a file, or the names in a folder, by which formats recognise their files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self.size = 0 if self.is_folder else path.stat().st_size
        self.start = b""
        if not self.is_folder:
            with path.open("rb") as file:
                self.start = file.read(HEAD)

    @cached_property
    def members(self) -> frozenset[str]:
        """Names of the members of a zip archive, or of the direct entries of a folder; else empty.

        Raises:
            zipfile.BadZipFile: the archive is damaged.
            ValueError: it has more members than allowed.
        """
        if self.is_folder:
            return frozenset(entry.name for entry in self.path.iterdir())
        if not self.start.startswith(b"PK\x03\x04"):
            return frozenset()
        with zipfile.ZipFile(self.path) as archive:
            names = archive.namelist()
        if len(names) > MEMBERS:
            raise ValueError(f"the archive has {len(names)} members, more than the {MEMBERS} allowed")
        return frozenset(names)

    @property
    def inner_members(self) -> frozenset[str]:
        """The members without their top-level folder: torch writes all files to one, of arbitrary name."""
        return frozenset(name.partition("/")[2] for name in self.members)


class LayerView(NamedTuple):
    """The formats of the float and the quantized model whose layers can be compared."""

    reference: str
    quantized: tuple[str, ...]
    worker: Worker


class Format(Plugin):
    """One kind of model file. A format has no options: class variables and methods describe it.

    Only ``title`` is required. Operations that are not overridden are unsupported, and reported as such.
    """

    plugin_kind: ClassVar[Kind] = "formats"

    title: ClassVar[str]
    """Name of the kind of file in messages: ``a TFLite file (.tflite)``."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """File name suffixes; files that edgeopt writes get the first one."""
    artifact: ClassVar[bool] = False
    """Whether recipes may request it as output."""
    order: ClassVar[int] = 50
    """Sort key in lists of formats."""
    weights_only: ClassVar[bool] = False
    """Whether its files contain weights without a network."""
    tells_inputs: ClassVar[bool] = True
    """Whether its files, or its runtime, declare the input shapes."""
    from_factory: ClassVar[bool] = False
    """Whether it is the format of ``model: {factory: ...}`` in a recipe; true for exactly one format."""
    needs_code: ClassVar[bool] = False
    """Whether loading a file requires the Python code of its author."""
    runtime: ClassVar[str | None] = None
    """The default runtime on this machine; a device file may name another."""
    library: ClassVar[str] = ""
    """Library name of the Hugging Face Hub."""
    casts: ClassVar[frozenset[str]] = frozenset()
    """Operators that only convert types."""
    magnifying: ClassVar[frozenset[str]] = frozenset()
    """Operators that can turn one quantization step of their input into many of their output."""
    advice: ClassVar[str] = ""
    """Fix to suggest if a model of this format cannot be converted to the requested one."""
    layers: ClassVar[LayerView | None] = None
    """Formats in which layers of a quantized artifact are compared with the float model."""
    no_layers: ClassVar[str] = ""
    """Fix to suggest if ``layers`` is None."""
    synthesizes: ClassVar[Worker | None] = None
    """The framework in which ``synthesize`` runs, if the format has it."""
    twin: ClassVar[str] = ""
    """A format with ``layers`` that is quantized from the same program, if this one has none."""

    def recognises(self, file: FileHead) -> bool:
        """Whether the content is of this format, regardless of the file name."""
        return False

    def files(self, path: Path) -> tuple[Path, ...]:
        """All files of the model at ``path``, the main file first.

        Further files are beside the main file, with names that begin with its stem: ``model.xml`` and
        ``model.bin``. If the model is a folder, all files in it are included.

        Raises:
            UsageError: a file is missing.
        """
        return tuple(files_of(path))

    def read(self, path: Path, *, trust: bool) -> Source:
        """Read the model's description without running any code of the file.

        ``trust`` allows contents that would run code when the model is loaded.

        Raises:
            UsageError: the file is not of this format, or would run code and is not trusted.
            ValueError, KeyError and the like: the file is damaged; the caller adds the message.
            MissingPackageError: reading it needs a package that is not installed.
        """
        raise UsageError(f"{path} is not a model: it is {self.title}")

    def check_weights(self, path: Path, *, trust: bool) -> tuple[str, ...]:
        """Check a file of weights without loading it; returns notes on contents accepted through ``trust``.

        Raises:
            UsageError: it contains no weights, or loading it would run code and it is not trusted.
        """
        raise UsageError(f"{path} contains no weights: it is {self.title}")

    def weight_shapes(self, path: Path) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor in a file of weights by name; empty if only loading it would tell.

        Raises:
            ValueError, KeyError and the like: the file is damaged.
        """
        return {}

    def breakdown(self, path: Path) -> SizeBreakdown:
        """The size breakdown; by file, unless the format overrides it."""
        root = path if path.is_dir() else path.parent
        parts = {file.relative_to(root).as_posix(): file.stat().st_size for file in self.files(path)}
        return SizeBreakdown(file=path.name, format=self.name, size_bytes=sum(parts.values()), parts=parts)

    def operators(self, path: Path) -> tuple[Operator, ...] | None:
        """The operators in file order; None if the format does not list them.

        Raises:
            StageError: the file is damaged.
        """
        return None

    def runtimes(self, path: Path) -> frozenset[str]:
        """The only runtimes that run the file, if it needs a particular one; empty: all of the format.

        Raises:
            StageError: the file is damaged.
        """
        return frozenset()

    def reads(self, path: Path) -> tuple[tuple[int, ...], ...]:
        """For each operator of ``breakdown``, the positions of those whose results it reads; -1: an input.

        Empty if the format does not say how they are connected.

        Raises:
            StageError: the file is damaged.
            MissingPackageError: reading it needs a package that is not installed.
        """
        return ()

    def weight_names(self, path: Path) -> tuple[str, ...]:
        """The names of the weights as the author's code has them, such as ``layer1.0.conv1.weight``.

        Empty if the format does not keep them, or layers have the same names in every format anyway.
        """
        return ()

    def output_steps(self, path: Path) -> tuple[float | None, ...]:
        """The quantization step of each float output that is dequantized from integers.

        None for an output that is not; empty if the format does not declare it.
        """
        return ()

    def semantic_digest(self, path: Path) -> str:
        """sha256 of the computation, independent of irrelevant bytes; by default the digest of the files."""
        return self.digest(path)

    def first_difference(self, before: Path, after: Path) -> str:
        """Description of the first difference between two files; '' if there is none."""
        for old, new in zip(self.files(before), self.files(after), strict=False):
            if difference := _first_byte(old, new):
                return difference
        return ""

    def open_layers(self, reference: Model, quantized: Model) -> Pair:
        """Open a float file of this format and a quantized one, to compare their layers.

        Raises:
            StageError: layers of this format cannot be compared.
        """
        raise StageError(f"the layers of {self.name} files cannot be compared", fix=self.no_layers)

    def synthesize(self, model: Model, given: Synthesis, progress: Callable[[float], None]) -> list[Array]:
        """Samples with the statistics that the batch norms of a model recorded, one array per input.

        ``progress`` is called with the loss of every step.

        Raises:
            StageError: the model cannot be loaded, or has no batch norm.
        """
        raise StageError(f"{self.title} does not keep the statistics of batch norms")

    @property
    def name(self) -> str:
        """The format's tag in ``Model.format`` and recipes."""
        return plugin_name(self)

    @property
    def is_model(self) -> bool:
        """Whether its files can be used as a model: the format implements ``read``."""
        return type(self).read is not Format.read

    @property
    def suffix(self) -> str:
        """The suffix of files that edgeopt writes."""
        return self.suffixes[0] if self.suffixes else ""

    def digest(self, path: Path) -> str:
        """sha256 of the content of all files of a model, independent of their folder and stem."""
        files = self.files(path)
        if path.is_dir() or len(files) == 1:
            return content_digest(path)
        return digest_of([[file.name.removeprefix(path.stem), content_digest(file)] for file in files])

    def size_bytes(self, path: Path) -> int:
        """Total size of all files of a model, in bytes."""
        return sum(file.stat().st_size for file in self.files(path))

    def placed(self, path: Path, target: Path) -> dict[Path, Path]:
        """The target of each file of a model if its main file is moved to ``target``.

        Raises:
            StageError: the name of a file does not begin with the stem of the main file.
        """
        if path.is_dir():
            return {file: target / file.relative_to(path) for file in files_of(path)}
        targets = {}
        for file in self.files(path):
            if file != path and not (file.parent == path.parent and file.name.startswith(path.stem)):
                raise StageError(
                    f"{file.name} belongs to {path.name}, but its name does not begin with {path.stem}"
                )
            targets[file] = target.with_name(target.stem + file.name.removeprefix(path.stem))
        return targets | ({path: target} if path in targets else {})

    def copy_to(self, path: Path, target: Path) -> None:
        """Copy a model so that its main file, or its folder, is at ``target``."""
        for source, place in self.placed(path, target).items():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)


def _first_byte(before: Path, after: Path) -> str:
    """Position of the first different byte of two files, as text."""
    offset = 0
    with before.open("rb") as old, after.open("rb") as new:
        while (a := old.read(CHUNK)) == (b := new.read(CHUNK)):
            if not a:
                return ""
            offset += len(a)
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"byte {offset + same:,} of {before.stat().st_size:,}"
