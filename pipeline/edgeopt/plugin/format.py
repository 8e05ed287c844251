"""Formats: what kinds of model files there are, and what edgeopt can tell of each."""

import shutil
import zipfile
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

from edgeopt.config.files import CHUNK, content_digest, files_of
from edgeopt.config.registry import Kind, plugin_name
from edgeopt.errors import StageError, UsageError
from edgeopt.model import Model
from edgeopt.plugin.base import Plugin, digest_of
from edgeopt.plugin.contents import Operator, SizeBreakdown, Source
from edgeopt.plugin.layer_pair import Pair
from edgeopt.plugin.stage import Worker

HEAD = 512
"""First bytes of a file that are read to recognise it."""
MEMBERS = 100_000
"""Members of an archive that are listed."""


class FileHead:
    """The beginning of a file, or the names in a folder: what formats recognise their files by."""

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
        """Names of the members of a zip archive, or of what lies directly in a folder; else nothing.

        Raises:
            zipfile.BadZipFile: the archive is damaged.
            ValueError: it has more members than any model.
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
        """The same without the first folder: all that torch writes lies in one, which may have any name."""
        return frozenset(name.partition("/")[2] for name in self.members)


class LayerView(NamedTuple):
    """Where the layers of a format can be compared: formats of a float model, and of a quantized one."""

    reference: str
    quantized: tuple[str, ...]
    worker: Worker


class Format(Plugin):
    """One kind of model file. It has no options: what a format is, its class variables and methods say.

    Only ``title`` must be given; what a format does not override, it cannot do, and edgeopt says so by name.
    """

    plugin_kind: ClassVar[Kind] = "formats"

    title: ClassVar[str]
    """As people call such a file: ``a TFLite file (.tflite)``."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """How its files are named; the first one is given to files that edgeopt writes."""
    artifact: ClassVar[bool] = False
    """Whether its files leave edgeopt: recipes may ask for it."""
    order: ClassVar[int] = 50
    """Its place where formats are listed."""
    weights_only: ClassVar[bool] = False
    """Whether it holds weights without a network."""
    tells_inputs: ClassVar[bool] = True
    """Whether its files hold the shapes of their inputs, or its runtime can tell them."""
    from_factory: ClassVar[bool] = False
    """Whether it stands for ``model: {factory: ...}`` in a recipe; of one format only."""
    needs_code: ClassVar[bool] = False
    """Whether the Python code of its author is needed to load it."""
    runtime: ClassVar[str | None] = None
    """The runtime that runs it on this machine, unless the device file names another."""
    library: ClassVar[str] = ""
    """What the Hugging Face Hub calls the library that loads it."""
    casts: ClassVar[frozenset[str]] = frozenset()
    """Operators that only write values in another type."""
    advice: ClassVar[str] = ""
    """What to do about a model of this format that cannot become what was asked for."""
    layers: ClassVar[LayerView | None] = None
    """Where to compare the layers of a quantized artifact of this format with those of the float model."""
    no_layers: ClassVar[str] = ""
    """The way out where ``layers`` is None."""

    def recognises(self, file: FileHead) -> bool:
        """Whether the content is of this format; the name of the file has no say."""
        return False

    def files(self, path: Path) -> tuple[Path, ...]:
        """All files of the model whose main file is at ``path``, that one first.

        Further ones lie beside it, and their names begin with its stem: ``model.xml`` and ``model.bin``.
        A model that is a folder has all files in it.

        Raises:
            UsageError: one of them is missing.
        """
        return tuple(files_of(path))

    def read(self, path: Path, *, trust: bool) -> Source:
        """What the file says of its model; nothing in it is run.

        ``trust`` allows what would run code from the file once it is loaded.

        Raises:
            UsageError: it is not what its name says, or would run code and is not trusted.
            ValueError, KeyError and the like: it is damaged; the caller words that.
            MissingPackageError: reading it needs a package that is not installed.
        """
        raise UsageError(f"{path} is not a model: it is {self.title}")

    def check_weights(self, path: Path, *, trust: bool) -> tuple[str, ...]:
        """Look through a file of weights without loading it; returns notes on what ``trust`` let through.

        Raises:
            UsageError: it holds no weights, or loading it would run code and it is not trusted.
        """
        raise UsageError(f"{path} holds no weights: it is {self.title}")

    def breakdown(self, path: Path) -> SizeBreakdown:
        """Where the bytes go; by file, unless the format knows better."""
        root = path if path.is_dir() else path.parent
        parts = {file.relative_to(root).as_posix(): file.stat().st_size for file in self.files(path)}
        return SizeBreakdown(file=path.name, format=self.name, size_bytes=sum(parts.values()), parts=parts)

    def operators(self, path: Path) -> tuple[Operator, ...] | None:
        """The operators in the order of the file; None where the format does not tell them.

        Raises:
            StageError: the file is damaged.
        """
        return None

    def output_steps(self, path: Path) -> tuple[float | None, ...]:
        """For each output that is a real number made of stored integers: how much one step of them is.

        Empty where the format does not tell; None for an output that is not made of integers.
        """
        return ()

    def semantic_digest(self, path: Path) -> str:
        """sha256 of what the file computes, equal where only noise differs; by default of every byte."""
        return self.digest(path)

    def first_difference(self, before: Path, after: Path) -> str:
        """The first part in which two files differ, in words; nothing if there is none to be told."""
        for old, new in zip(self.files(before), self.files(after), strict=False):
            if place := _first_byte(old, new):
                return place
        return ""

    def open_layers(self, reference: Model, quantized: Model) -> Pair:
        """A float file of this format and a quantized one, opened to compare their layers.

        Raises:
            StageError: layers of this format cannot be looked at.
        """
        raise StageError(f"the layers of {self.name} files cannot be compared", fix=self.no_layers)

    @property
    def name(self) -> str:
        """The format's tag, as ``Model.format`` and recipes have it."""
        return plugin_name(self)

    @property
    def is_model(self) -> bool:
        """Whether its files can be given as a model: the format reads what they say."""
        return type(self).read is not Format.read

    @property
    def suffix(self) -> str:
        """The suffix of files that edgeopt writes."""
        return self.suffixes[0] if self.suffixes else ""

    def digest(self, path: Path) -> str:
        """sha256 of the content of all files of a model; where they lie, and their stem, does not matter."""
        files = self.files(path)
        if path.is_dir() or len(files) == 1:
            return content_digest(path)
        return digest_of([[file.name.removeprefix(path.stem), content_digest(file)] for file in files])

    def size_bytes(self, path: Path) -> int:
        """Bytes of all files of a model."""
        return sum(file.stat().st_size for file in self.files(path))

    def placed(self, path: Path, target: Path) -> dict[Path, Path]:
        """Where each file of a model comes to lie when its main file is called ``target``.

        Raises:
            StageError: a file's name does not begin with the stem of the main file.
        """
        if path.is_dir():
            return {file: target / file.relative_to(path) for file in files_of(path)}
        found = {}
        for file in self.files(path):
            if file != path and not (file.parent == path.parent and file.name.startswith(path.stem)):
                raise StageError(f"{file.name} belongs to {path.name}, but is not called after it")
            found[file] = target.with_name(target.stem + file.name.removeprefix(path.stem))
        return found | ({path: target} if path in found else {})

    def copy_to(self, path: Path, target: Path) -> None:
        """Copy a model, so that its main file, or its folder, is ``target``."""
        for source, place in self.placed(path, target).items():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)


def _first_byte(before: Path, after: Path) -> str:
    place = 0
    with before.open("rb") as old, after.open("rb") as new:
        while (a := old.read(CHUNK)) == (b := new.read(CHUNK)):
            if not a:
                return ""
            place += len(a)
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"byte {place + same:,} of {before.stat().st_size:,}"
