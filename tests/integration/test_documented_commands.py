"""The commands in the blocks of the documents run as written, in order, each document in its own folder.

Those that cannot run here are marked below with the test that runs them, or with the reason why none does.
The tutorial has a test of its own, for every command of its shell. What sentences mention is checked by
``test_docs_commands``.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import RECIPES
from documents import ROOT, Written, written
from in_process import Edgeopt
from registry import DOCKER_REGISTRY, docker_registry
from test_artifacts import keys

# Own workers: `nets` is a name of other modules too; here it is the same code in every folder.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_workers")]

ELSEWHERE = {
    r"docs/tutorial.md": "tests/integration/test_tutorial.py",
    r"docs/store.md:\d+: edgeopt optimize": "tests/test_shared_store.py",
    r"edgeopt search ": "tests/integration/test_search.py",
    r"--on ray:|edgeopt node ": "tests/integration/test_ray.py",
    r"devices check gateway|host,gateway": "tests/test_ssh.py",
    r"arm64-emulated": "tests/test_arm64.py",
    r"ethos-u55-128": "tests/test_vela.py",
    r"pip install (\.|'\.'|\.\[numerics\])$": "tests/integration/test_pull.py",
    r"make release": "tests/integration/test_pull.py",
    r"make site": "tests/test_site.py",
    r"make docs": "tests/unit/test_docs.py",
}
"""Commands, as patterns, and the test that runs what they do: on other machines, or in other processes."""
NOT_RUN = {
    r"gpu-host": "needs an NVIDIA GPU: tests/test_gpu.py runs it where there is one",
    r"make (test|check|lint)|-m pytest": "what runs this test",
    r"make (demo|cluster-demo|versions)": "an environment of its own of 5 GB; the recipes run in other tests",
    r"pip install .*\[.*(keras|all|publish)": "5 GB of packages, which are those of this environment",
}
SHORT = ("--set", "latency={min_runs: 2, min_seconds: 0}")
FOLLOWED_BY = {
    r"edgeopt optimize (?!recipe)": SHORT,
    r"edgeopt synthesize": ("--samples", "4", "--steps", "2"),
    r"edgeopt init": ("--out", "written.yaml"),  # recipe.yaml is there already, as the reader completed it
}
"""Words that follow a command here, for less work."""
BEFORE = {
    "docs/diagnosing.md": "optimize model.keras --data samples.npz --int8 --format tflite --out run",
}
"""What a document takes for done."""
RECIPE = """
version: 1
name: kws
model: {path: model.keras, preprocess: {scale: 1/16}}
data:
  calibration: {uses: npz, with: {path: calibration.npz}}
  evaluation: {uses: npz, with: {path: evaluation.npz}}
metric: top1
optimize: {int8: {quantize: int8}}
formats: [tflite, onnx]
devices: [host, cortex-m]
latency: {min_runs: 2, min_seconds: 0}
gates: [{metric: top1, max_drop: 0.03}]
"""
NETWORK = """
import torch


class Net(torch.nn.Sequential):
    '''Tells the brightest channel of pixels in 0..1.'''

    def __init__(self) -> None:
        super().__init__(
            torch.nn.Hardtanh(0.0, 1.0),
            torch.nn.AvgPool2d(32),
            torch.nn.Conv2d(3, 3, 1),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        )
"""


def marks(command: Written) -> list[str]:
    """Why a command is not run here."""
    known = {**ELSEWHERE, **NOT_RUN}
    return [known[pattern] for pattern in known if re.search(pattern, str(command))]


COMMANDS = [command for command in written() if not command.is_mention]
RUN = {
    path: [command for command in COMMANDS if command.path == path and not marks(command)]
    for path in sorted({command.path for command in COMMANDS if not marks(command)})
}


def test_every_mark_is_of_use_and_names_a_test_that_exists() -> None:
    for pattern in (*ELSEWHERE, *NOT_RUN):
        assert any(re.search(pattern, str(command)) for command in COMMANDS), pattern
    for name in ELSEWHERE.values():
        assert (ROOT / name).is_file(), name
    assert sum(map(len, RUN.values())) > 60
    assert all(command.words[0].endswith("edgeopt") for commands in RUN.values() for command in commands)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not DOCKER_REGISTRY:
        pytest.skip("docker-registry is not installed")
    with docker_registry(tmp_path_factory.mktemp("registry") / "data") as address:
        yield address


@pytest.fixture
def registry(host: str, tmp_path: Path) -> str:
    """A part of the registry for one document: several push the same version, each of a run of its own."""
    return f"{host}/{tmp_path.name}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def world(
    edgeopt: Edgeopt,
    registry: str,
    store: Path,
    made_environment: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The files that the documents name: models, data, a run, its release, keys."""
    monkeypatch.setenv("EDGEOPT_STORE", str(store))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made_environment("cortex-m")
    models(tmp_path)
    run = tmp_path / "artifacts" / "runs" / "latest"
    said = edgeopt("optimize", "recipe.yaml")
    assert said.code == 0, said.err
    shutil.copy(run / "models" / "int8.tflite", tmp_path / "model.tflite")
    shutil.copy(run / "models" / "float.onnx", tmp_path / "model.onnx")
    for name in ("run", "edgeopt-run", "collected-runs/kws"):
        shutil.copytree(run, tmp_path / name)
    _, public = keys(tmp_path, "private")
    public.rename(tmp_path / "public.pem")
    (tmp_path / "edgeopt.toml").write_text(f'[artifacts]\nremote = "file://{tmp_path}/shelf"\n')
    assert edgeopt("baseline", "write", "run").code == 0
    for url in (f"oci://{registry}/team/kws:1.1.0", f"file://{tmp_path}/shelf/kws:1.1.0"):
        said = edgeopt(
            "artifacts", "push", "run", "--to", url, "--sign", "private.pem", "--channel", "stable"
        )
        assert said.code == 0 or "already" in said.err, said.err


def models(folder: Path) -> None:
    """Models of two frameworks, and samples in every form."""
    import torch
    from PIL import Image
    from sklearn.datasets import load_digits

    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "nets.py").write_text(NETWORK)
    digits, labels = load_digits(return_X_y=True)
    images = digits.reshape(-1, 8, 8, 1).astype(np.float32)
    for name, part in {"samples": slice(400), "calibration": slice(64), "evaluation": slice(64, 264)}.items():
        np.savez(folder / f"{name}.npz", x=images[part], y=labels[part])
    for name in ("train", "val"):
        pixels = np.random.default_rng(len(name)).integers(0, 100, (60, 224, 224, 3), np.uint8)
        brightest = np.arange(60) % 3
        pixels[np.arange(60), :, :, brightest] += 27
        np.savez(folder / f"{name}.npz", x=pixels, y=brightest)
    for index, (image, label) in enumerate(zip(images[:200, :, :, 0], labels[:200], strict=True)):
        path = folder / "photos" / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(path)
    for place in (folder, folder / "home" / "models"):
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(RECIPES / "digits" / "digits.keras", place / "model.keras")
    shutil.copytree(folder, folder / "home" / "data", ignore=lambda *_: ["home", "photos"])
    weights = {"2.weight": 9 * torch.eye(3).reshape(3, 3, 1, 1), "2.bias": torch.zeros(3)}
    torch.save(weights, folder / "weights.pth")


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_of_a_document_runs(
    path: Path, edgeopt: Edgeopt, registry: str, tmp_path: Path
) -> None:
    if first := BEFORE.get(path.relative_to(ROOT).as_posix()):
        shutil.rmtree("run")
        said = edgeopt(*first.split(), *SHORT)
        assert said.code == 0, said.err
    for command in RUN[path]:
        words = [os.path.expanduser(word.replace("registry.example.com", registry)) for word in command.words]
        for pattern, more in FOLLOWED_BY.items():
            words += more if re.search(pattern, str(command)) else ()
        said = edgeopt(*words[1:])
        assert said.code == 0, f"{command}: exit code {said.code}\n{said.out[-3000:]}{said.err[-3000:]}"
