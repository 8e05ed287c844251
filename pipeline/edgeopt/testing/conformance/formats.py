"""Contract of formats: recognition, copies, digests, and rejection of damaged files."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgeopt.devices.agent_archive import runtime_names
from edgeopt.errors import EdgeoptError
from edgeopt.formats.known import identify
from edgeopt.formats.source import check_weights, inspect, size_breakdown
from edgeopt.plugin import Format
from edgeopt.testing.conformance.options import Nonconformance, demand
from edgeopt.testing.workshop import Workshop

DAMAGES = 40
"""Number of damaged copies of a file: none may raise anything but an `EdgeoptError`."""


def check_format(kind: Format | type[Format], workshop: Workshop) -> None:
    """Check that files are recognised, copied, digested and described completely, and rejected when damaged.

    Raises:
        Nonconformance: the format violates the contract.
    """
    format = kind() if isinstance(kind, type) else kind
    name = format.name
    demand(bool(format.title), f"{name} has no title")
    if format.runtime is not None:
        demand(format.runtime in runtime_names(), f"{name}: the runtime {format.runtime!r} does not exist")
    if format.artifact:
        demand(bool(format.suffix), f"{name} is an artifact format without a suffix")
    model = workshop.model(name)
    path, files = model.path, format.files(model.path)
    demand(bool(files) and all(file.is_file() for file in files), f"{name}: not all of its files exist")
    if type(format).recognises is not Format.recognises:
        identified = identify(path)
        demand(
            identified is not None and identified.name == name,
            f"{name} is identified as {identified and identified.name}",
        )
    if format.is_model:
        source = inspect(path)
        demand(source.model.format == name, f"{name} is read as {source.model.format}")
    breakdown = format.breakdown(path)
    demand(
        breakdown.size_bytes == sum(file.stat().st_size for file in files) == sum(breakdown.parts.values()),
        f"{name}: the parts of the breakdown do not add up to the size of the files",
    )
    reads = format.reads(path)
    demand(
        not reads
        or (
            len(reads) == len(breakdown.layers)
            and all(one < at for at, each in enumerate(reads) for one in each)
        ),
        f"{name}: not every operator reads results of earlier operators only",
    )
    scratch = workshop.folder / "formats" / name
    shutil.rmtree(scratch, ignore_errors=True)
    copy = scratch / "elsewhere" / f"other{path.suffix}"
    copy.parent.mkdir(parents=True)
    format.copy_to(path, copy)
    demand(format.digest(copy) == format.digest(path), f"{name}: a copy has a different digest")
    demand(len(format.files(copy)) == len(files), f"{name}: a copy has a different number of files")
    demand(
        format.semantic_digest(copy) == format.semantic_digest(path),
        f"{name}: a copy has a different semantic digest",
    )
    for file in format.files(copy):
        content = file.read_bytes()
        if content:
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            demand(
                format.digest(copy) != format.digest(path), f"{name}: the digest does not cover {file.name}"
            )
            file.write_bytes(content)
    for damage, file in _damaged(format, copy):
        for read in (inspect, check_weights, size_breakdown, format.operators):
            try:
                read(copy)
            except EdgeoptError:
                continue
            except Exception as error:
                raise Nonconformance(
                    f"{name}: {file.name} {damage}: {read.__name__} raises {type(error).__name__}: {error}"
                ) from error


def _damaged(format: Format, path: Path) -> Iterator[tuple[str, Path]]:
    """Damage the files in turn, reproducibly; each is restored afterwards."""
    rng = random.Random(0)
    files = [file for file in format.files(path) if file.stat().st_size]
    for number in range(DAMAGES):
        file = files[number % len(files)]
        content = file.read_bytes()
        place = rng.randrange(min(len(content), 4096) if number % 2 else len(content))
        patch = (b"", bytes([rng.randrange(256)]), b"\xff" * 8)[number % 3]
        rest = content[place + len(patch) :] if patch else b""
        file.write_bytes(content[:place] + patch + rest)
        yield f"with {patch.hex()} at {place}" if patch else f"truncated at {place}", file
        file.write_bytes(content)
