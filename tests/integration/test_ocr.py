"""The recipe digits-ocr: its figures equal those of an independent evaluation of every file."""

import importlib
import sys
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from bare_runtimes import Floats, answers, snr_db
from edgeopt.commands.optimize import optimize
from edgeopt.results import Report, Result
from needs import needs

needs("ai_edge_litert", "ai_edge_quantizer", "torch", "torchao", "litert_torch", "executorch", "jiwer")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_workers")]

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CELLS = [
    (variant, format_name)
    for variant in ("float", "dynamic_int8")
    for format_name in ("tflite", "torchscript", "executorch")
]


class Run(NamedTuple):
    report: Report
    images: NDArray[np.float32]
    """``[n, 1, 32, 128]``, preprocessed."""
    texts: list[str]
    """A letter for each token of the label."""
    source: Floats
    """``[n, 32, 11]``: what the network answers in PyTorch."""

    def result(self, variant: str, format_name: str) -> Result:
        (row,) = [row for row in self.report.results if (row.variant, row.format) == (variant, format_name)]
        assert row.status == "ok", row.reason
        return row

    def value(self, variant: str, format_name: str, name: str) -> float:
        return float(self.result(variant, format_name).measurements[name].value)

    def scores(self, variant: str, format_name: str) -> Floats:
        """The scores ``[n, 32, 11]`` that a file computes in its runtime, without edgeopt."""
        artifact = self.result(variant, format_name).artifact
        assert artifact is not None
        assert self.report.folder is not None
        (scores,) = answers(self.report.folder / artifact.path, self.images)
        assert scores.shape == self.source.shape
        return scores


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    import torch
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("ocr")
    given = ["latency={min_seconds: 0.01, min_runs: 3}"]
    report = optimize("digits-ocr", out=folder / "run", store=folder / "store", overrides=given)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPES)
        samples = list(importlib.import_module("digits.strips").strips("evaluation"))
        network = importlib.import_module("digits.ocr").digits_ocr().eval()
    for name in [name for name in sys.modules if name.partition(".")[0] == "digits"]:
        del sys.modules[name]
    images = np.stack([sample.inputs[0][:, :, 0] for sample in samples])[:, np.newaxis].astype(np.float32)
    images *= np.float32(1 / 255)  # the last bit decides how dynamic quantization rounds
    network.load_state_dict(load_file(RECIPES / "digits" / "ocr.safetensors"))
    with torch.no_grad():
        source = network(torch.from_numpy(images)).numpy().astype(np.float64)
    return Run(report, images, [text(sample.label.tolist()) for sample in samples], source)


# An evaluation that shares no code with edgeopt


def text(tokens: list[int]) -> str:
    return "".join(chr(ord("a") + token) for token in tokens)


def read(scores: Floats) -> list[str]:
    """The best path of each strip ``[32, 11]``: repetitions collapsed, then the blank 0 dropped."""
    paths = scores.argmax(axis=2).tolist()
    return [text([token for token, _ in groupby(path) if token != 0]) for path in paths]


def same_letters(found: str, before: str) -> float:
    """1 - edit distance / length of the text that the source model reads."""
    import jiwer

    assert before  # jiwer has no rate for an empty text; a strip has at least one digit
    return max(0.0, 1 - jiwer.cer(before, found))


@pytest.mark.parametrize(("variant", "format_name"), CELLS)
def test_the_figures_equal_an_independent_evaluation(run: Run, variant: str, format_name: str) -> None:
    import jiwer

    scores = run.scores(variant, format_name)
    found = read(scores)
    assert run.value(variant, format_name, "cer") == pytest.approx(jiwer.cer(run.texts, found), abs=1e-6)
    agreement = np.mean([same_letters(*pair) for pair in zip(found, read(run.source), strict=True)])
    assert run.value(variant, format_name, "agreement") == pytest.approx(agreement, abs=1e-6)
    if variant != "float":  # that of float files is of the last bits, which depend on the batch size
        snr = run.value(variant, format_name, "fidelity_snr_db")
        assert snr == pytest.approx(snr_db(scores, run.source), abs=1e-3)


def test_the_source_model_is_what_the_drop_is_measured_from(run: Run) -> None:
    import jiwer

    expected = jiwer.cer(run.texts, read(run.source))
    assert expected <= 0.05
    assert run.report.source is not None
    assert run.report.source.measurements["cer"].value == pytest.approx(expected, abs=1e-6)
    # Errors: a drop is an increase.
    for cell in CELLS:
        assert run.value(*cell, "cer_drop") == pytest.approx(run.value(*cell, "cer") - expected, abs=1e-6)
        assert run.value(*cell, "cer_drop") <= 0.005


def test_every_cell_passes(run: Run) -> None:
    assert {(row.variant, row.format) for row in run.report.results} == set(CELLS)
    assert len(run.texts) == 300
    assert {verdict.status for verdict in run.report.gates} == {"pass"}
    assert run.report.exit_code == 0
