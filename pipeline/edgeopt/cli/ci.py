"""``ci``: run a recipe for a pull request, judge it, and explain the verdict where it is read."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.cli.check import Confidence, MaxDrop, MaxLatencyRatio, MaxSizeIncrease, Undecided
from edgeopt.cli.optimize import RecipeName
from edgeopt.cli.options import (
    Command,
    DataRoot,
    DeviceFolders,
    Devices,
    Formats,
    KeepGoing,
    Protocol,
    Sets,
    StoreFolder,
    Variants,
    folders,
)

if TYPE_CHECKING:
    from edgeopt.errors import EdgeoptError
    from edgeopt.evaluation.judgement import Judgement

TEXT = "--arguments"
WrongOption: Any = typer.BadParameter.__base__
"""The errors of a command line: of click, or of typer's own copy of it."""


class Expanding(Command):
    """A command with an option whose value is further arguments, quoted as in a shell."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from edgeopt.errors import UsageError

        expanded: list[str] = []
        rest: list[str] = []
        given = iter(args)
        try:
            for each in given:
                name, equals, value = each.partition("=")
                if name != TEXT:
                    expanded.append(each)
                    rest.append(each)
                    continue
                expanded += _words(value if equals else next(given, ""))
            return super().parse_args(ctx, expanded)
        except UsageError as error:
            failure = error
        except WrongOption as error:
            if len(rest) == len(args):
                raise
            failure = UsageError(
                f"{TEXT}: {error.format_message()}", fix="edgeopt ci --help lists the options"
            )
        self._explain(ctx, [*rest, *given], failure)
        raise failure

    def _explain(self, ctx: Any, args: list[str], failure: "EdgeoptError") -> None:
        """Explain in the pull request what is wrong with the further arguments, if the rest is right."""
        try:
            known = self.make_context(ctx.info_name, args, parent=ctx.parent).params
        except WrongOption:
            return  # nobody knows for which recipe
        _explain(failure, known["recipe"], known["title"], known["out"], comment=known["comment"])


def _words(text: str) -> list[str]:
    """The arguments in a text, quoted as in a shell."""
    from edgeopt.errors import UsageError

    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"{TEXT}: {str(error).lower()}", fix="quote arguments with blanks as in a shell"
        ) from error


def ci(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("edgeopt-run"),
    against: Annotated[
        Path | None, typer.Option("--against", help="The baseline file. Default: only the gates judge.")
    ] = None,
    title: Annotated[
        str,
        typer.Option(help="Tells runs of one recipe apart, such as those of a matrix: one comment for each."),
    ] = "",
    comment: Annotated[
        bool, typer.Option("--comment/--no-comment", help="Comment on the pull request.")
    ] = True,
    max_drop: MaxDrop = 0.01,
    confidence: Confidence = 0.95,
    undecided: Undecided = "fail",
    max_size_increase: MaxSizeIncrease = 0.02,
    max_latency_ratio: MaxLatencyRatio = None,
    variant: Variants = None,
    format: Formats = None,
    device: Devices = None,
    sets: Sets = None,
    protocol: Protocol = None,
    data_root: DataRoot = None,
    device_folder: DeviceFolders = None,
    store: StoreFolder = None,
    keep_going: KeepGoing = False,
    arguments: Annotated[
        str,
        typer.Option(TEXT, metavar="TEXT", help="Further arguments in one text, quoted as in a shell."),
    ] = "",
) -> None:
    """Run a recipe, judge it by its gates and a baseline, and explain the verdict in the pull request.

    On GitHub and GitLab, one comment shows every artifact before and after, and failures are marked at the
    lines of the recipe. The folder of the run contains the same as comment.md, check.xml, code-quality.json
    and ci.env. What may not be written, such as a comment for a fork, changes no verdict.

    Exit code 0: no worse. 1: worse, or undecided. 2: something is wrong with the recipe or the baseline.
    3: something could not run.
    """
    from edgeopt.cli.check import limits_of, show_unjudged
    from edgeopt.cli.screen.progress import Progress
    from edgeopt.cli.screen.tables import show_report, show_verdicts
    from edgeopt.commands.judge import comparable, judge
    from edgeopt.commands.optimize import optimize
    from edgeopt.errors import EdgeoptError
    from edgeopt.evaluation.baseline import read_baseline
    from edgeopt.evaluation.judgement import Judgement
    from edgeopt.recipe.selection import Selection
    from edgeopt.reports.ci.comment import headline

    outcome: Judgement | EdgeoptError
    try:
        limits = limits_of(max_drop, confidence, undecided, max_size_increase)
        selection = Selection(tuple(variant or ()), tuple(format or ()), tuple(device or ()))
        baseline = None if against is None else comparable(read_baseline(against), selection)
        with Progress() as progress:
            report = optimize(
                recipe,
                out=out,
                store=store,
                overrides=[*([f"latency={{protocol: {protocol}}}"] if protocol else ()), *(sets or ())],
                **selection._asdict(),
                data_root=data_root,
                device_folders=folders(device_folder),
                keep_going=keep_going,
                watch=progress,
            )
        progress.write_log(out / "run.log")
        show_report(report)
        outcome, unjudged = judge(
            report,
            baseline,
            limits,
            run=out,
            with_gates=True,
            max_latency_ratio=max_latency_ratio,
            store=store,
            device_folders=folders(device_folder),
        )
        show_unjudged(unjudged)
        if baseline is not None:
            show_verdicts(outcome.compared)
    except EdgeoptError as error:
        outcome = error
    _explain(outcome, recipe, title, out, comment=comment)
    if isinstance(outcome, EdgeoptError):
        raise outcome
    typer.echo(f"{outcome.word}: {headline(outcome)}")
    raise typer.Exit(outcome.exit_code)


def _explain(
    outcome: "Judgement | EdgeoptError", recipe: str, title: str, out: Path, *, comment: bool
) -> None:
    """Explain a verdict, or the error that ended a run, wherever the CI system shows it."""
    from edgeopt.cli.screen import github
    from edgeopt.commands.judge import explain, write_files
    from edgeopt.evaluation.judgement import Judgement

    explanation = explain(outcome, recipe, title, os.environ)
    identity = f"{recipe} {title}".strip()
    outputs = write_files(explanation, outcome, out, identity)
    if github.is_active():
        if isinstance(outcome, Judgement):  # an error is annotated where it ends the command
            github.annotate(explanation.annotations, explanation.file)
        github.summarize(explanation.summary, explanation.comment)
        github.set_outputs(outputs)
    if comment:
        _put_comment(explanation.comment, identity)


def _put_comment(body: str, identity: str) -> None:
    """Comment on the pull request of this job, if there is one; a failure is only reported."""
    from edgeopt.cli.screen import github
    from edgeopt.config.withheld import whole_environment
    from edgeopt.errors import EdgeoptError
    from edgeopt.publish.pull_requests import pull_request, put_comment

    try:
        where = pull_request(whole_environment())
        if where is not None:
            address = put_comment(where, body, identity)
            typer.echo(f"comment: {address}" if address else f"commented on {where.host}", err=True)
    except EdgeoptError as error:
        github.notice(f"no comment on the pull request: {error.message}; comment.md has its text")
