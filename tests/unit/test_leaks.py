"""Evaluation samples must not be training samples."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeopt.commands.optimize import optimize
from edgeopt.errors import UsageError
from edgeopt.recipe.resolve import load_recipe
from edgeopt.run.preflight import check_samples, find_leaks
from edgeopt.run.store import Store

Write = Callable[..., Path]


def arrays(folder: Path, name: str, first: int, count: int) -> str:
    images = np.random.default_rng(0).integers(0, 16, (600, 8, 8, 1)).astype(np.float32)
    labels = np.arange(600) % 10
    np.savez(folder / name, x=images[first : first + count], y=labels[first : first + count])
    return f"{{uses: npz, with: {{path: {name}}}}}"


def leaks(recipe: Path, store: Path) -> list[str]:
    loaded = load_recipe(recipe)
    return find_leaks(loaded, check_samples(loaded, Store(store)))


@pytest.mark.parametrize("part", ["calibration", "train", "validation"])
def test_evaluation_samples_that_were_learned_from_are_refused(
    write_recipe: Write, tmp_path: Path, part: str
) -> None:
    judging, other = arrays(tmp_path, "judge.npz", 0, 100), arrays(tmp_path, "other.npz", 97, 100)
    recipe = write_recipe(data=f"{{evaluation: {judging}, {part}: {other}}}")
    with pytest.raises(UsageError, match=f"3 of the 100 evaluation samples are in data.{part} as well"):
        leaks(recipe, tmp_path / "store")
    # The second time, the hashes come from the store.
    with pytest.raises(UsageError, match="allow_leak"):
        leaks(recipe, tmp_path / "store")


def test_a_leak_can_be_forced_and_is_recorded(write_recipe: Write, tmp_path: Path) -> None:
    judging, other = arrays(tmp_path, "judge.npz", 0, 100), arrays(tmp_path, "same.npz", 0, 100)
    recipe = write_recipe(data=f"{{evaluation: {judging}, calibration: {other}, allow_leak: true}}")
    (said,) = leaks(recipe, tmp_path / "store")
    assert said.startswith("100 of the 100 evaluation samples are in data.calibration as well")


def test_a_single_sample_twice_is_told_and_not_refused(write_recipe: Write, tmp_path: Path) -> None:
    judging, other = arrays(tmp_path, "judge.npz", 0, 200), arrays(tmp_path, "other.npz", 199, 100)
    recipe = write_recipe(data=f"{{evaluation: {judging}, calibration: {other}}}")
    assert leaks(recipe, tmp_path / "store") == [
        "1 of the 200 evaluation samples are in data.calibration as well"
    ]


def test_data_without_common_samples_say_nothing(write_recipe: Write, tmp_path: Path) -> None:
    judging, other = arrays(tmp_path, "judge.npz", 0, 100), arrays(tmp_path, "other.npz", 100, 100)
    recipe = write_recipe(data=f"{{evaluation: {judging}, calibration: {other}, train: {other}}}")
    assert leaks(recipe, tmp_path / "store") == []


def test_nothing_is_built_when_data_leak(write_recipe: Write, tmp_path: Path) -> None:
    judging = arrays(tmp_path, "judge.npz", 0, 100)
    recipe = write_recipe(data=f"{{evaluation: {judging}, calibration: {judging}}}")
    events: list[object] = []
    with pytest.raises(UsageError, match="100 of the 100"):
        optimize(recipe, out=tmp_path / "out", store=tmp_path / "store", watch=events.append)
    assert events == []
