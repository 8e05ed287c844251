"""The verdict on a whole run: by the gates of its recipe, and by its comparison with a baseline. Pure."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgeopt.evaluation.regression import Change
from edgeopt.results import Report, Result, Verdict
from edgeopt.results.gate import Judged

Word: TypeAlias = Literal["pass", "fail", "undecided", "error"]


def key_of(of: Judged) -> tuple[str, str, str]:
    """What identifies an artifact on a device."""
    return of.variant, of.format, of.device


@dataclass(frozen=True)
class Judgement:
    """Everything that decides whether a change may land."""

    report: Report
    gates: tuple[Verdict, ...] = ()
    """By the recipe."""
    changes: tuple[Change, ...] | None = None
    """By the baseline; None without one."""
    latency: tuple[Verdict, ...] = ()
    """On the latency, measured again in turns with the baseline's files."""

    @property
    def compared(self) -> tuple[Verdict, ...]:
        """The verdicts of the comparison with the baseline."""
        return (*(verdict for change in self.changes or () for verdict in change.verdicts), *self.latency)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return (*self.gates, *self.compared)

    @property
    def blocking(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.blocks]

    @property
    def known_missing(self) -> set[tuple[str, str, str]]:
        """Keys of the artifacts that are unavailable, and in the baseline as well."""
        known = {change.entry.key for change in self.changes or () if change.entry.failed is not None}
        available = {key_of(row) for row in self.report.results if row.status == "ok"}
        return known - available

    @property
    def missing(self) -> list[Result]:
        """The results that could not run, except those of ``known_missing``."""
        known = self.known_missing
        return [row for row in self.report.results if row.status != "ok" and key_of(row) not in known]

    @property
    def exit_code(self) -> int:
        """3 if something could not run, 1 if a verdict blocks, otherwise 0; see `Report.exit_code`."""
        statuses = [metric.status for metric in self.report.metrics]
        statuses += [self.report.source.status] if self.report.source is not None else []
        if self.missing or any(status != "ok" for status in statuses):
            return 3
        return 1 if self.blocking else 0

    @property
    def word(self) -> Word:
        """The exit code in one word; ``undecided`` if nothing but too few samples blocks."""
        if self.exit_code != 1:
            return "error" if self.exit_code else "pass"
        return "undecided" if all(each.status == "undecided" for each in self.blocking) else "fail"
