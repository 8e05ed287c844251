"""A whole search on digits: its front, the evaluation data, losses, limits that nothing meets."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from edgeopt.cli import app
from edgeopt.commands.optimize import optimize
from edgeopt.commands.search import Found, search
from edgeopt.errors import CannotRunError, EdgeoptError
from edgeopt.recipe.resolve import load_recipe
from edgeopt.results import Event
from edgeopt.results.search import RESULT, SearchResult, Tried
from edgeopt.run.executors import choice
from edgeopt.run.executors.executor import Task
from edgeopt.run.executors.local import LocalExecutor
from edgeopt.run.store import Store
from edgeopt.search.journal import NAME
from needs import needs

needs("tensorflow", "keras", "ai_edge_litert", "ai_edge_quantizer", "sklearn", "optuna")
pytestmark = pytest.mark.slow

TRIALS = 6
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
OPTIONS: dict[str, Any] = {
    "under": ("top1 max_drop 2 %",),
    "over": ("bits=[4, 8]", "calibrator=[minmax, mse]", "per_channel=[true, false]"),
    "formats": ("tflite",),
    "overrides": (
        "latency={min_runs: 2, min_seconds: 0, max_seconds: 1}",
        "data.validation={uses: digits, with: {part: train, limit: 256}}",
    ),
}
FLAKY = """
import sys
from pathlib import Path
from edgeopt.devices.connections._local_link import LocalLink, own_environment
from edgeopt.errors import DeviceError
from edgeopt.plugin import Connection

class Flaky(Connection):
    '''It is off while the file ``off`` exists.'''

    off: str

    def open(self):
        if Path(self.off).exists():
            raise DeviceError("it does not respond")
        return LocalLink([sys.executable], own_environment())
"""


class Losing(LocalExecutor):
    """Loses the process of the first task that ``chosen`` names, as a kernel without memory kills one."""

    def __init__(self, chosen: Callable[[Task], bool]) -> None:
        super().__init__()
        self.chosen, self.lost = chosen, 0

    def submit(self, task: Task) -> None:
        if not self.lost and self.chosen(task):
            self.lost += 1
            task = task._replace(function=_die, args=())
        super().submit(task)


def _die(say: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def of_a_layer(task: Task) -> bool:
    """Whether a task belongs to the sensitivities: one layer in another precision."""
    return list(getattr(task.args[0], "layers", {}).values()) == ["int4"]


def of_a_trial(task: Task) -> bool:
    return getattr(task.args[0], "calibrator", "") == "mse"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def found(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    out = tmp_path_factory.mktemp("search")
    return search("digits-keras", **OPTIONS, trials=TRIALS, out=out, store=store)


def test_the_front_is_selected_on_other_data_than_it_is_judged_on(found: Found) -> None:
    result = SearchResult.model_validate_json((found.folder / RESULT).read_bytes())
    assert result == found.result
    assert len(result.trials) == TRIALS
    assert result.best is not None
    assert result.best.holds
    plain = next(
        each
        for each in result.trials
        if each.options == {"quantize": {"scheme": "int8", "calibrator": "minmax"}}
    )
    assert result.best.objectives["size_bytes"] < plain.objectives["size_bytes"]
    report = found.reports["tflite"]
    assert report.run.samples != result.samples
    for judged in result.judged:
        (row,) = (row for row in report.results if row.variant == judged.variant)
        drop = row.measurements["top1_drop"].value
        assert judged.evaluation["top1_drop"] == drop
        assert judged.optimism["top1_drop"] == drop - judged.selection["top1_drop"]
    assert found.exit_code in (0, 1)


def test_a_recipe_of_the_front_runs_as_it_is(found: Found) -> None:
    path = found.folder / "front" / "best.yaml"
    loaded = load_recipe(path)
    assert [variant.name for variant in loaded.variants] == ["float", "best"]
    assert found.result.best is not None
    assert yaml.safe_load(path.read_text())["optimize"]["best"] == found.result.best.options


def test_a_killed_search_comes_to_the_same_front(found: Found, store: Path, tmp_path: Path) -> None:
    lines = (found.folder / NAME).read_bytes().splitlines(keepends=True)
    (tmp_path / NAME).write_bytes(b"".join(lines[:3]) + lines[3][:20])  # two trials, and a part of the third
    again = search("digits-keras", **OPTIONS, trials=TRIALS, out=tmp_path, store=store)
    kept = {"trials": {"__all__": {"seconds"}}}
    assert again.result.model_dump(exclude=kept) == found.result.model_dump(exclude=kept)


def trials(found: Found) -> list[Tried]:
    return [each.model_copy(update={"seconds": 0.0}) for each in found.result.trials]


@pytest.mark.parametrize("chosen", [of_a_layer, of_a_trial])
def test_a_killed_process_is_no_failed_candidate(
    chosen: Callable[[Task], bool], found: Found, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "store")
    own = Store(tmp_path / "store")
    for key in [each.key for each in own.entries() if each.meta.get("stage") == "quantize_tflite"]:
        own.remove(key)
    with Losing(chosen) as executor:
        token = choice._open.set(executor)
        try:
            with pytest.raises(CannotRunError, match=r"its process died with SIGKILL[\s\S]*search again"):
                search("digits-keras", **OPTIONS, trials=TRIALS, out=tmp_path / "out", store=own.root)
            assert executor.lost == 1
            assert b"failed" not in (tmp_path / "out" / NAME).read_bytes()
            again = search("digits-keras", **OPTIONS, trials=TRIALS, out=tmp_path / "out", store=own.root)
        finally:
            choice._open.reset(token)
    assert trials(again) == trials(found)


def test_a_device_that_vanishes_is_no_failed_candidate(
    found: Found, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flaky_connections.py").write_text(FLAKY)
    (tmp_path / "devices").mkdir()
    off = tmp_path / "off"
    (tmp_path / "devices" / "board.yaml").write_text(
        f"connection: {{uses: 'flaky_connections:Flaky', with: {{off: '{off}'}}}}\nruntimes: default\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def watch(event: Event) -> None:
        if event.message.startswith("trial 1 of"):
            off.touch()

    given = {**OPTIONS, "trials": TRIALS, "devices": ("board",), "device_folders": (tmp_path / "devices",)}
    with pytest.raises(CannotRunError, match=r"tflite on board: it does not respond[\s\S]*search again"):
        search("digits-keras", **given, out=tmp_path / "out", store=store, watch=watch)
    assert (tmp_path / "out" / NAME).read_bytes().count(b"\n") == 2  # the first line, and a trial
    off.unlink()
    again = search("digits-keras", **given, out=tmp_path / "out", store=store)
    front = [(each.options, each.objectives, each.place) for each in found.result.trials]
    assert [(each.options, each.objectives, each.place) for each in again.result.trials] == front


def test_a_recipe_with_a_search_is_optimized(found: Found, store: Path, tmp_path: Path) -> None:
    over = {"bits": [4, 8], "calibrator": ["minmax", "mse"], "per_channel": [True, False]}
    part = {"under": [{"metric": "top1", "max_drop": 0.02}], "over": over, "budget": {"trials": TRIALS}}
    settings = [*OPTIONS["overrides"], f"optimize={json.dumps({'best': {'search': part}})}", "gates=[]"]
    report = optimize("digits-keras", overrides=settings, formats=["tflite"], out=tmp_path, store=store)
    (row,) = (row for row in report.results if row.variant == "best")
    assert row.status == "ok"
    (expected,) = (row for row in found.reports["tflite"].results if row.variant == "best")
    assert row.artifact is not None and expected.artifact is not None
    assert row.artifact.digest == expected.artifact.digest
    assert any("of a search on" in note for note in report.run.notes)


def test_a_model_is_searched_by_the_recipe_that_is_written_for_it(tmp_path: Path) -> None:
    import keras
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez(tmp_path / "digits.npz", x=(digits.images[..., None] / 16).astype("float32"), y=digits.target)
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.save(tmp_path / "digits.keras")
    arguments = ["search", str(tmp_path / "digits.keras"), "--format", "tflite", "--quiet", "--trials", "2"]
    without = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "none")])
    assert isinstance(without.exception, EdgeoptError) and without.exception.exit_code == 2
    assert "edgeopt search" in without.exception.fix and "--data samples.npz" in without.exception.fix
    arguments += [
        "--data",
        str(tmp_path / "digits.npz"),
        "--under",
        "agreement min 0.5",
        "--over",
        "calibrator=[minmax, mse]",
    ]
    arguments += ["--set", OPTIONS["overrides"][0], "--set", "gates=[]"]
    arguments += ["--set", "model.preprocess={scale: 1}"]
    out, store = tmp_path / "out", tmp_path / "store"
    done = CliRunner().invoke(app, [*arguments, "--out", str(out), "--store", str(store)])
    assert done.exit_code == 0, done.output
    result = SearchResult.model_validate_json((out / RESULT).read_bytes())
    assert result.selection == "data.validation" and 600 < result.samples < 1000
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    assert written["data"]["validation"]["with"]["of"] == written["data"]["evaluation"]["with"]["of"]
    assert (out / "search.html").exists() and (out / "tflite" / "report.html").exists()


def test_limits_that_nothing_meets_say_what_is_closest(found: Found, store: Path, tmp_path: Path) -> None:
    arguments = ["search", "digits-keras", "--format", "tflite", "--trials", "2", "--quiet"]
    arguments += [
        "--set",
        OPTIONS["overrides"][1],
        "--under",
        "size_bytes max 1 KiB",
        "--over",
        "calibrator=[minmax, mse]",
    ]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path), "--store", str(store)])
    assert done.exit_code == 1, done.output
    assert "exceeds size_bytes max 1024 by 1" in done.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--device", "cortex-m"], 3, "the search measures on cortex-m, which cannot be used"),
        (["--minimize", "arena_bytes"], 2, "arena_bytes is not measured on host"),
        (["--over", "bits"], 2, "--over 'bits' has no values"),
        (["--trials", "0"], 2, "greater than or equal to 1"),
    ],
)
def test_what_a_search_cannot_measure_is_said_before_any_trial(
    arguments: list[str],
    code: int,
    message: str,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEOPT_HOME", str(tmp_path / "home"))  # where no device has been set up
    common = ["search", "digits-keras", "--format", "tflite", "--over", "calibrator=[minmax, mse]", "--quiet"]
    common += ["--set", OPTIONS["overrides"][1]]
    done = CliRunner().invoke(app, [*common, *arguments, "--out", str(tmp_path), "--store", str(store)])
    error = done.exception
    assert isinstance(error, EdgeoptError)
    assert error.exit_code == code
    assert message in error.message
    assert not (tmp_path / RESULT).exists()
