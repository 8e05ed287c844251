"""Makes one file smaller without changing what it computes, by the stage that can do that for its format."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from edgeopt.config import registry
from edgeopt.config.files import replacing
from edgeopt.errors import UsageError
from edgeopt.formats.known import format_named
from edgeopt.formats.source import recognise, size_breakdown
from edgeopt.model import Model
from edgeopt.plugin import Context, SizeBreakdown, Stage

INTENT = "slim"


class Slimmed(NamedTuple):
    """Where the bytes went before, and where they go now."""

    before: SizeBreakdown
    after: SizeBreakdown


def slim(file: Path, out: Path) -> Slimmed:
    """Write the model in ``file`` to ``out`` in fewer bytes; its outputs stay bit-identical.

    Raises:
        UsageError: the file is missing or no model, its format cannot be slimmed, or ``out`` cannot be
            written.
        StageError: the file is damaged or cannot be slimmed.
    """
    kind = recognise(file)
    stages = [stage for stage in registry.plugins(Stage).values() if INTENT in stage.fulfils]
    able = [stage for stage in stages if kind.name in stage.accepts]
    if not able:
        titles = sorted({format_named(name).title for stage in stages for name in stage.accepts})
        raise UsageError(
            f"{file} cannot be slimmed: it is {kind.title}", fix=f"what can be slimmed: {', '.join(titles)}"
        )
    # Here nobody is served by a copy of the file with a remark.
    strict = {"best_effort": False} if "best_effort" in able[0].model_fields else {}
    before = size_breakdown(file)
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        context = Context(Path(scratch), None, lambda text: None)
        made = able[0].model_validate(strict).run(Model(format=kind.name, path=file, inputs=()), context)
        try:
            with replacing(out) as place:
                kind.copy_to(made.path, place)
        except OSError as error:
            raise UsageError(f"cannot write {out}: {error.strerror}", fix="choose another place") from error
    return Slimmed(before, size_breakdown(out))
