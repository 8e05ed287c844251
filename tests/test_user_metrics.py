"""User-defined metrics: named, tried before any slow work, and unable to abort a run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeopt.commands.optimize import optimize
from edgeopt.errors import RecipeError
from edgeopt.recipe.planner import make_plan
from edgeopt.recipe.resolve import load_recipe
from edgeopt.results import Event, Report
from edgeopt.run.keys import judging_code
from edgeopt.search.search import _identity
from edgeopt.search.space import Space

Write = Callable[..., Path]

CODE = """
import os, sys
import numpy as np

def margin(outputs, labels):
    two = np.sort(outputs.reshape(len(outputs), -1), axis=1)[:, -2:]
    return two[:, 1] - two[:, 0]

def share(outputs, labels):
    return (outputs.reshape(len(outputs), -1).argmax(axis=1) == labels).astype(float)

def raises(outputs, labels):
    raise KeyError("no such score")

def leaves(outputs, labels):
    sys.exit(0)

def dies(outputs, labels):
    os._exit(0)

def late(outputs, labels):
    if len(outputs) > 2:
        raise ValueError("too many samples")
    return 1.0
"""


def uses(function: str, more: str = "") -> str:
    return f"{{uses: function, with: {{function: 'own:{function}'}}{more}}}"


@pytest.fixture
def write(write_recipe: Write, tmp_path: Path) -> Write:
    (tmp_path / "own.py").write_text(CODE)
    return write_recipe


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def run(recipe: Path, store: Path, events: list[Event] | None = None) -> Report:
    watch = (events if events is not None else []).append
    return optimize(recipe, out=recipe.parent / "out", store=store, watch=watch)


def test_two_of_one_kind_need_names(write: Write) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(metric=f"[{uses('margin')}, {uses('share')}]"))
    told = str(caught.value)
    assert "'function' is used twice: give this one a name, {uses: function, name: ...}" in told
    with pytest.raises(RecipeError, match="'size_bytes' is the name of a measurement"):
        load_recipe(write(metric=uses("margin", ", name: size_bytes")))


def test_named_metrics_stand_beside_each_other_in_report_and_gates(write: Write, store: Path) -> None:
    shown = uses("share", ", name: right").replace("own:share'", "own:share', shown_as: fraction")
    recipe = write(
        "gates: [{metric: right, max_drop: 0.0}, {metric: sure, min: 100}]\n",
        metric=f"[{uses('margin', ', name: sure')}, {shown}]",
    )
    report = run(recipe, store)
    assert report.exit_code == 1 and report.primary_metric == "sure"
    (row,) = report.results
    assert [info.name for info in report.metrics][:2] == ["sure", "right"]
    assert row.measurements["right"].text == "99.00 %" and row.measurements["right_drop"].text == "+0.00 pt"
    assert row.measurements["sure"].kind == "number" and row.measurements["sure"].n == 100
    assert [verdict.status for verdict in report.gates] == ["pass", "fail"]
    again = Report.model_validate_json((recipe.parent / "out" / "report.json").read_bytes())
    assert again.metrics == report.metrics and "right" in (recipe.parent / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raises", "KeyError: 'no such score'"),
        ("leaves", "exit code 0"),
        ("dies", "exit code 0"),
        ("late", "ValueError: too many samples"),
    ],
)
def test_a_metric_that_fails_costs_itself_alone(
    write: Write, store: Path, function: str, reason: str
) -> None:
    recipe = write(
        "gates: [{metric: own, min: 0}, {metric: top1, min: 0.9}]\n",
        metric=f"[{uses(function, ', name: own')}, top1]",
    )
    events: list[Event] = []
    report = run(recipe, store, events)
    assert report.exit_code == 3
    failed = {info.name: info for info in report.metrics if info.status != "ok"}
    assert list(failed) == ["own"] and reason in failed["own"].reason
    (row,) = report.results
    assert row.status == "ok" and "own" not in row.measurements and row.measurements["top1"].value > 0.9
    own, top1 = report.gates
    assert own.status == "fail" and own.reason.startswith("own could not be computed: ")
    assert top1.status == "pass"
    assert "own could not be computed" in (recipe.parent / "out" / "report.md").read_text()


def test_the_code_of_a_metric_is_part_of_how_a_run_was_judged(write: Write, tmp_path: Path) -> None:
    path = write(metric=f"[{uses('margin')}, top1]", optimize="{best: {search: {}}}")

    def of_search() -> dict[str, object]:
        plan = make_plan(load_recipe(path))
        task = next(variant.search for variant in plan.recipe.variants if variant.search)
        return _identity(plan, "best", task, Space((), {}))

    before, trials = judging_code(load_recipe(path)), of_search()
    assert list(before) == ["code of metric function"]
    (tmp_path / "own.py").write_text(CODE.replace("two[:, 1] - two[:, 0]", "two[:, 1] - 2 * two[:, 0]"))
    after = judging_code(load_recipe(path))
    assert list(after) == list(before) and after != before
    # Trials of a search were judged by it, too.
    assert {key for key, value in of_search().items() if trials[key] != value} == {"code"}
