"""What one step did to the outputs of a model: every output, and parts of outputs of mixed ranges. Pure."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.interpreter import UNDECIDABLE, Interpreter, single
from edgeopt.model import Array, Outputs
from edgeopt.results import Hop, OutputChange, snr_db

LOSSLESS_SNR_DB = 60.0
LOSSLESS_MAX_ERROR = 1e-4
BROKEN_SNR_DB = 6.0
ALIKE_SNR_DB = 30.0
"""Above this, outputs are so close that another largest value only means that two were nearly equal."""
APART = 20.0
"""Ratio of the ranges of two parts of an output from which the smaller one is judged by itself."""
NEGLIGIBLE = 1e-4
"""Parts with a smaller share of the output's range carry no information, such as dead channels."""
MAX_PARTS = 16
"""Values of a vector that may be quantities of different kinds; longer ones are scores or features."""
MAX_DEAD = 4
"""Maximum number of dead parts of an output that a report lists."""

Floats = NDArray[np.float64]


def hop(
    stage: str,
    produced: str,
    *,
    lossless: bool,
    before: Outputs,
    after: Outputs,
    trained: bool = False,
    interpreters: Sequence[Interpreter] = (),
) -> Hop:
    """Compare the outputs of one step with those of the previous step, on the same samples.

    A lossless step must preserve every output (60 dB, or 1e-4 in every value). A step that quantizes or
    prunes may change them, but the model is broken if one no longer resembles the previous one, if a part of
    it has become constant, or if the decisions of its task no longer agree. Training changes the confidence
    of a model, so for a trained one only its decisions are compared, if its task has any. The figures of the
    hop are those of its worst output. Outputs that the ``interpreters`` do not read are taken by themselves.
    """
    common = {"stage": stage, "produced": produced, "lossless": lossless}
    if len(before.arrays) != len(after.arrays):
        reason = f"{stage} changed the number of outputs from {len(before.arrays)} to {len(after.arrays)}"
        return Hop(status="broken", reason=reason, **common)
    alone, together = _readers(interpreters, before)
    shared = {index for _, positions in together for index in positions}
    changes = []
    for index, other in enumerate(_matched(before, after)):
        name, old, new = before.name(index), before.arrays[index], after.arrays[other]
        judge = alone.get(index)
        if judge is None and index not in shared:
            judge = single(Outputs([old], [name]))
        change = _change(name, old, new, judge, lossless=lossless, trained=trained)
        of = f" of output {name!r}" if len(before.arrays) > 1 else ""
        reason = f"{stage} {change.reason.format(of=of)}" if change.reason else ""
        changes.append(change.model_copy(update={"reason": reason}))
    worst = min(changes, key=_goodness)
    errors = [change.max_abs_error for change in changes if change.max_abs_error is not None]
    agreements = [change.agreement for change in changes if change.agreement is not None]
    status, reason = worst.status, worst.reason
    for interpreter, positions in together if status != "broken" else ():
        agreement = _agreement(interpreter, before, aligned(after, before))
        if agreement is not None:
            agreements.append(agreement)
            least = min(changes[index].snr_db or 0.0 for index in positions)
            if not lossless and _disagrees(agreement, interpreter) and least < ALIKE_SNR_DB:
                status = "broken"
                of = f" of {interpreter.head}" if interpreter.head else ""
                reason = f"{stage} broke the model: SNR{of} {least:.1f} dB, agreement {agreement:.2%}"
    return Hop(
        snr_db=worst.snr_db,
        max_abs_error=max(errors, default=None),
        agreement=min(agreements, default=None),
        status=status,
        reason=reason,
        outputs=tuple(changes),
        **common,
    )


def _readers(
    interpreters: Sequence[Interpreter], outputs: Outputs
) -> tuple[dict[int, Interpreter], list[tuple[Interpreter, tuple[int, ...]]]]:
    """The interpreter of each output that is read by itself, and those that read several, with the positions.

    Interpreters whose outputs these are not are left out.
    """
    alone: dict[int, Interpreter] = {}
    together: list[tuple[Interpreter, tuple[int, ...]]] = []
    for interpreter in interpreters:
        try:
            positions = interpreter.reads(outputs.all_names())
        except UNDECIDABLE:
            continue
        if len(positions) == 1 and positions[0] not in alone:
            alone[positions[0]] = interpreter
        elif positions:
            together.append((interpreter, positions))
    return alone, together


def aligned(outputs: Outputs, source: Outputs) -> Outputs:
    """The outputs in the order of the source model's, and in their shapes where the sizes match.

    Outputs without a counterpart are left out.
    """
    order = _matched(source, outputs)[: len(outputs.arrays)]
    pairs = [(outputs.arrays[index], like) for index, like in zip(order, source.arrays, strict=False)]
    arrays = [array.reshape(like.shape) if array.size == like.size else array for array, like in pairs]
    return Outputs(arrays, [source.name(index) for index in range(len(arrays))])


def _goodness(change: OutputChange) -> tuple[bool, float]:
    return change.status != "broken", -np.inf if change.snr_db is None else change.snr_db


def _matched(before: Outputs, after: Outputs) -> list[int]:
    """For each output before, the position of the same one after: by name, else by position."""
    unique = len(set(before.names)) == len(before.arrays)
    if unique and sorted(before.names) == sorted(after.names):
        return [after.names.index(name) for name in before.names]
    return list(range(len(before.arrays)))


def _change(
    name: str,
    before: Array,
    after: Array,
    interpreter: Interpreter | None,
    *,
    lossless: bool,
    trained: bool,
) -> OutputChange:
    """The change of one output; in its reason, ``{of}`` stands for the name of the output.

    ``interpreter``: what it means by itself; None if it is read together with others.
    """
    count = min(len(before), len(after))
    if before.shape[1:] != after.shape[1:]:
        if before[0].size != after[0].size:
            shapes = f"from {list(before.shape[1:])} to {list(after.shape[1:])}"
            return OutputChange(name=name, status="broken", reason=f"changed the shape{{of}} {shapes}")
        after = after.reshape(len(after), *before.shape[1:])
    old, new = before[:count].astype(np.float64), after[:count].astype(np.float64)
    snr, error, agreement = _snr(old, new), _largest_error(old, new), None
    if interpreter is not None and np.isfinite(new).all():
        agreement = _agreement(interpreter, Outputs([old], [name]), Outputs([new], [name]))
    same = "" if agreement is None else f", agreement on {agreement:.2%} of {count} samples"
    if lossless:
        alike = snr >= LOSSLESS_SNR_DB or error <= LOSSLESS_MAX_ERROR
    elif agreement is None or interpreter is None:
        alike = snr >= BROKEN_SNR_DB
    else:
        agrees = snr >= ALIKE_SNR_DB or not _disagrees(agreement, interpreter)
        alike = agrees and (trained or snr >= BROKEN_SNR_DB)
    reason = ""
    if not alike or not np.isfinite(new).all():
        reason = f"broke the model: SNR{{of}} {snr:.1f} dB{same}, largest error {error:.3g}"
    elif dead := dead_parts(old, new):
        reason = f"broke the model: {dead[0]}"
    return OutputChange(
        name=name,
        snr_db=snr,
        max_abs_error=error if np.isfinite(error) else float(np.finfo(np.float64).max),
        agreement=agreement,
        status="broken" if reason else "ok",
        reason=reason,
    )


def _snr(old: Floats, new: Floats) -> float:
    return snr_db(float((old**2).sum()), float(((old - new) ** 2).sum()))


def _largest_error(old: Floats, new: Floats) -> float:
    return float(np.abs(old - new).max()) if old.size else 0.0


def _agreement(interpreter: Interpreter, before: Outputs, after: Outputs) -> float | None:
    """Mean agreement of the decisions; None if they cannot be compared."""
    try:
        agreement = interpreter.agreement(after, before)
    except UNDECIDABLE:
        return None
    return None if agreement is None else float(agreement.mean())


def _disagrees(agreement: float, interpreter: Interpreter) -> bool:
    least = interpreter.task.broken_agreement
    return least is not None and agreement < least


def output_changes(
    before: Outputs, after: Outputs, interpreters: Sequence[Interpreter] = ()
) -> tuple[OutputChange, ...]:
    """Every output of a model compared with the source model's, both aligned; nothing is judged.

    The reason says which parts of an output became constant. Outputs of another number or shape are left out.
    """
    whole = hop("", "", lossless=False, before=before, after=after, trained=True, interpreters=interpreters)
    changes = []
    for change, old, new in zip(whole.outputs, before.arrays, after.arrays, strict=False):
        if change.snr_db is None:
            continue
        dead = [part.format(of="") for part in dead_parts(old.astype(np.float64), new.astype(np.float64))]
        more = [f"and {len(dead) - MAX_DEAD} more"] if len(dead) > MAX_DEAD else []
        reason = "; ".join([*dead[:MAX_DEAD], *more])
        changes.append(change.model_copy(update={"status": "broken" if dead else "ok", "reason": reason}))
    return tuple(changes)


def dead_parts(old: Floats, new: Floats) -> list[str]:
    """What has become constant, in words: all values, or parts whose range was far below that of the rest.

    A detector may have coordinates up to 640 and scores up to 1 in one tensor: one quantization step is then
    larger than every score. The SNR of the tensor does not show it.
    """
    if not old.size:
        return []
    if np.ptp(old) > NEGLIGIBLE * np.abs(old).max() and np.ptp(new) == 0:
        return [f"every value{{of}} is {new.flat[0]:.3g}"]
    if old.min() >= 0 and old.max() <= 1:
        return []  # probabilities: those that are small everywhere may vanish
    dead: list[str] = []
    for axis in sorted({1, old.ndim - 1}):
        if old.ndim < 2 or old.shape[axis] < 2 or (old.ndim == 2 and old.shape[1] > MAX_PARTS):
            continue
        rest = tuple(other for other in range(old.ndim) if other != axis)
        ranges = np.ptp(old, axis=rest)
        for index in _small_parts(ranges):
            part = new.take(index, axis)
            if np.ptp(part) == 0:
                where = f"part {index} of {len(ranges)} on axis {axis}{{of}}"
                reach = f"its range was {ranges[index]:.3g}, that of other parts {ranges.max():.3g}"
                dead.append(f"{where} is {part.flat[0]:.3g} everywhere: {reach}")
    return dead


def _small_parts(ranges: Floats) -> list[int]:
    """The parts below the first wide gap between the ranges, without those that are small among them too."""
    order = np.sort(ranges)[::-1]
    lower = np.maximum(order[1:], 1e-300)
    gaps = np.flatnonzero(order[:-1] / lower >= APART)
    if not len(gaps):
        return []
    largest = order[gaps[0] + 1]
    if largest < NEGLIGIBLE * order[0]:
        return []
    return [int(index) for index in np.flatnonzero((ranges <= largest) & (ranges >= largest / APART))]
