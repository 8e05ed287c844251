"""Calibration and evaluation out of one dataset."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.errors import UsageError
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.evaluation.datasets.split import Split
from edgeopt.evaluation.samples import checked, title
from edgeopt.recipe.isolated import runs_user_code


def indices(data: Npz, part: str, **options: float) -> list[int]:
    return [sample.label for sample in Split(of=data, part=part, **options).samples()]  # type: ignore[misc]


def test_no_sample_is_in_both_parts_and_none_is_lost(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (400, 6)).astype(np.uint8)
    x[300:] = x[:100]  # identical samples: leaks, if they were in both parts
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(400))
    data = Npz(path=tmp_path / "d.npz")
    calibration, evaluation = indices(data, "calibration"), indices(data, "evaluation")
    assert sorted(calibration + evaluation) == list(range(400))
    assert 50 < len(calibration) < 110
    assert not {x[at].tobytes() for at in calibration} & {x[at].tobytes() for at in evaluation}
    assert indices(data, "calibration", limit=7) == calibration[:7]
    assert len(indices(data, "calibration", share=0.5)) > len(calibration)
    # The order decides nothing, and more samples move none.
    np.savez(tmp_path / "d.npz", x=x[::-1][:350], y=np.arange(400)[::-1][:350])
    assert set(indices(data, "calibration")) == {at for at in calibration if at >= 50}
    assert Split(of=data, part="calibration").digest() != Split(of=data, part="evaluation").digest()


def test_a_part_of_a_part_is_a_part_of_it(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((400, 6))
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(400))
    inner = Split(of=Npz(path=tmp_path / "d.npz"), part="calibration", share=0.3)
    parts = [Split(of=inner, part=part, share=0.5) for part in ("calibration", "evaluation")]
    first, second = ({sample.label for sample in part.samples()} for part in parts)
    assert not first & second and len(first | second) == len(list(inner.samples()))
    assert 40 < len(first) < 80 and 40 < len(second) < 80


def test_it_is_written_as_in_a_recipe(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 2)))
    given = {"of": {"uses": "npz", "with": {"path": "d.npz"}}, "part": "evaluation"}
    split = Split.model_validate(given, context={"roots": (tmp_path,)})
    assert split.of == Npz(path=tmp_path / "d.npz")
    assert title(split) == str(tmp_path / "d.npz")
    for wrong, message in (
        ({"uses": "npzz"}, "no dataset 'npzz'; did you mean 'npz'"),
        ({"uses": "npz", "with": {"path": "e.npz"}}, f"path: no such file: {tmp_path / 'e.npz'}"),
        ({"use": "npz"}, "expected a dataset"),
        (7, "valid dictionary or instance of Dataset"),
    ):
        with pytest.raises(ValidationError, match=message):
            Split.model_validate({**given, "of": wrong}, context={"roots": (tmp_path,)})
    with pytest.raises(UsageError, match="no samples"):
        list(checked(Split(of=split.of, part="calibration", share=1e-9)))


def test_user_code_inside_is_run_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def data():\n    return []\n")
    of = {"uses": "function", "with": {"function": "mine:data"}}
    split = Split.model_validate({"of": of, "part": "evaluation"}, context={"roots": (tmp_path,)})
    assert runs_user_code(split)
