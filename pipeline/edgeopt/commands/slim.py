"""Lossless size reduction of one file, by the ``slim`` stage of its format."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from edgeopt.config import registry
from edgeopt.config.files import replacing, writing
from edgeopt.errors import UsageError
from edgeopt.formats.known import format_named
from edgeopt.formats.source import recognise, size_breakdown
from edgeopt.model import Model
from edgeopt.plugin import Context, SizeBreakdown, Stage

INTENT = "slim"


class Slimmed(NamedTuple):
    """The size breakdown before and after."""

    before: SizeBreakdown
    after: SizeBreakdown


def slim(file: Path, out: Path) -> Slimmed:
    """Write the model in ``file`` to ``out`` in fewer bytes; outputs stay bit-identical.

    Raises:
        UsageError: the file is missing or not a model, its format cannot be slimmed, or ``out`` cannot be
            written.
        StageError: the file is damaged or cannot be slimmed.
    """
    kind = recognise(file)
    stages = [stage for stage in registry.plugins(Stage).values() if INTENT in stage.fulfils]
    applicable = [stage for stage in stages if kind.name in stage.accepts]
    if not applicable:
        titles = sorted({format_named(name).title for stage in stages for name in stage.accepts})
        raise UsageError(
            f"{file} cannot be slimmed: it is {kind.title}", fix=f"supported: {', '.join(titles)}"
        )
    # The best-effort mode of a recipe would return a plain copy and a note: here that is an error.
    strict = {"best_effort": False} if "best_effort" in applicable[0].model_fields else {}
    before = size_breakdown(file)
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        context = Context(Path(scratch), None, lambda text: None)
        slimmed = (
            applicable[0].model_validate(strict).run(Model(format=kind.name, path=file, inputs=()), context)
        )
        with writing(out, "choose another folder"), replacing(out) as place:
            kind.copy_to(slimmed.path, place)
    return Slimmed(before, size_breakdown(out))
