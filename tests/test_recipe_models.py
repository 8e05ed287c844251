"""The models of the shipped recipes: they load, and have the documented accuracy."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.evaluation.metrics.top1 import Top1
from edgeopt.evaluation.samples import collect
from edgeopt.model import Preprocessing, TensorSpec

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
DATA = os.environ.get("EDGEOPT_DATA")


@pytest.fixture
def networks(monkeypatch):
    """Imports a module of recipes/models as a recipe does."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(RECIPES)
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        monkeypatch.delitem(sys.modules, name)
    return lambda name: importlib.import_module(f"models.{name}")


def test_digits_torch_is_as_accurate_as_claimed(networks):
    import torch
    from safetensors.torch import load_file

    model = networks("digits_cnn").digits_cnn()
    file = RECIPES / "digits" / "digits.safetensors"
    model.load_state_dict(load_file(file))
    spec = TensorSpec(name="image", shape=(1, 1, 8, 8), layout="NCHW")
    (images,), labels = collect(Digits(part="evaluation"), Preprocessing(scale=1 / 16, layout="NHWC"), [spec])
    with torch.no_grad():
        outputs = model.eval()(torch.from_numpy(images)).numpy()
    assert Top1().score(outputs, labels).value > 0.97  # 98.8 % when it was trained
    assert file.stat().st_size < 150_000


def test_digits_keras_is_as_accurate_as_claimed():
    # In a separate process: TensorFlow and torch must not share one.
    pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    file = RECIPES / "digits" / "digits.keras"
    code = f"""
import keras
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.evaluation.metrics.top1 import Top1
from edgeopt.model import Preprocessing, TensorSpec
from edgeopt.evaluation.samples import collect
model = keras.saving.load_model({str(file)!r}, compile=False, safe_mode=True)
spec = TensorSpec(name="image", shape=model.inputs[0].shape, layout="NHWC")
(images,), labels = collect(Digits(part="evaluation"), Preprocessing(scale=1 / 16), [spec])
print(Top1().score(model.predict(images, verbose=0), labels).value)
"""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    assert float(run.stdout.split()[-1]) > 0.97  # 98.2 % when it was trained
    assert file.stat().st_size < 150_000


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269722), (32, 464154), (44, 658586), (56, 853018)])
def test_resnet_has_the_parameters_of_the_paper(networks, depth, parameters):
    import torch

    model = getattr(networks("resnet"), f"resnet{depth}")()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert round(parameters / 1e6, 2) == {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85}[depth]  # their table 6
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(convolutions) == depth


def test_shortcut_takes_every_second_pixel_and_adds_zeros(networks):
    import torch

    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    y = networks("resnet").Shortcut(2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert y[0, 0].abs().sum() == y[0, 3].abs().sum() == 0
    assert y[0, 1].tolist() == [[0, 2], [8, 10]]


def test_resnet20_can_be_exported_and_traced(networks):
    import torch

    model = networks("resnet").resnet20().eval()
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(x)
        assert (torch.export.export(model, (x,)).module()(x) - wanted).abs().max() < 1e-5
        assert (torch.fx.symbolic_trace(model)(x) - wanted).abs().max() < 1e-5


@pytest.mark.skipif(DATA is None, reason="needs EDGEOPT_DATA: the given weights and CIFAR-10")
def test_resnet20_with_the_given_weights(networks):
    import torch

    root = Path(str(DATA))
    checkpoint = torch.load(root / "resnet-cifar10" / "resnet20.th", map_location="cpu", weights_only=True)
    model = networks("resnet").resnet20()
    model.load_state_dict({k.removeprefix("module."): v for k, v in checkpoint["state_dict"].items()})
    preprocessing = Preprocessing(
        scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), layout="NHWC"
    )
    spec = TensorSpec(name="image", shape=(1, 3, 32, 32), layout="NCHW")
    (images,), labels = collect(Npz(path=root / "cifar10" / "test446.npz"), preprocessing, [spec])
    with torch.no_grad():
        outputs = model.eval()(torch.from_numpy(images)).numpy()
    assert abs(Top1().score(outputs, labels).value - 0.9103) < 1e-4  # 406 of 446
    assert np.isfinite(outputs).all()
