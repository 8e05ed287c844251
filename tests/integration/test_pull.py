"""From a real run to the firmware engineer's folder: registry, a light install, a C compiler, real data."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from registry import DOCKER_REGISTRY, docker_registry
from test_artifacts import keys
from test_firmware import C99, CORTEX_M4, build, self_test

ROOT = Path(__file__).resolve().parent.parent.parent
FRAMEWORKS = "torch", "tensorflow", "keras", "onnx", "onnxruntime", "ai_edge_litert", "jinja2", "cyclonedx"
KIT = "golden_vectors.c", "model_data.c", "preprocess.c", "self_test.c"


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the base package alone, installed from a wheel."""
    folder = tmp_path_factory.mktemp("light")
    python = folder / "environment" / "bin" / "python"
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
    command = [python, "-m", "pip", "install", *quiet, "--constraint", ROOT / "constraints.txt", ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    found = "import importlib.util as u, sys; sys.exit(any(map(u.find_spec, sys.argv[1:])))"
    assert subprocess.run([python, "-c", found, *FRAMEWORKS], check=False).returncode == 0
    return python


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not DOCKER_REGISTRY:
        pytest.skip("docker-registry is not installed")
    with docker_registry(tmp_path_factory.mktemp("registry") / "data") as host:
        yield host


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def edgeopt(*arguments: str | Path, python: Path | str = sys.executable, cwd: Path) -> str:
    command = [python, "-m", "edgeopt", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_keyword_model_gets_to_a_board(
    light: Path,
    registry: str,
    store: Path,
    real_data: Path,
    made_environment: Callable[[str], None],
    tmp_path: Path,
) -> None:
    made_environment("cortex-m")
    private, public = keys(tmp_path, "release")
    only = ["--set", "formats=[tflite]", "--set", "devices=[cortex-m]"]
    only += ["--set", "optimize={int8: {quantize: {scheme: int8, io: int8}}}"]
    edgeopt("optimize", "mlperf-tiny-kws", *only, "--store", store, "--out", tmp_path / "run", cwd=tmp_path)
    url = f"oci://{registry}/team/kws"
    options = ["--to", f"{url}:1.0.0", "--sign", private, "--channel", "stable"]
    edgeopt("artifacts", "push", tmp_path / "run", *options, "--library", tmp_path / "maker", cwd=tmp_path)

    board = tmp_path / "board"
    board.mkdir()
    told = edgeopt(
        *("artifacts", "pull", f"{url}:stable", "--device", "cortex-m", "--out", "kws"),
        *("--require-signature", public),
        python=light,
        cwd=board,
    )
    assert "int8.tflite: measured on cortex-m" in told and "signature verified" in told
    folder = board / "kws"
    kit = folder / "firmware"
    for command in (C99, CORTEX_M4):
        for source in KIT:
            build(command, "-c", source, "-o", f"{source}.o", where=kit)
    # Preprocessing and quantization in C, from the raw samples on, give what Python gave; and a model that
    # answers as TensorFlow Lite Micro did passes.
    main = (kit / "self_test.h").read_text()
    assert "kws_self_test" in main
    assert self_test(kit, name="kws") == 0
    vectors = {file.stem: np.load(file) for file in (folder / "golden").glob("*.npy")}
    assert vectors["input_0"].dtype == np.int8 and len(vectors["input_0"]) == 8
    assert (vectors["output_0"].argmax(axis=1) == vectors["label"]).mean() >= 0.75


def test_what_was_published_is_built_again_the_same(store: Path, tmp_path: Path) -> None:
    """Real models: test_reproduce.py."""
    only = ["--set", "formats=[tflite]", "--set", "devices=[host]", "--set", "gates=[]"]
    run = tmp_path / "run"
    edgeopt("optimize", "digits-keras", *only, "--store", store, "--out", run, cwd=tmp_path)
    shelf = ["--library", tmp_path / "library"]
    edgeopt("artifacts", "push", run, "--name", "it", "--version", "1", *shelf, cwd=tmp_path)
    said = edgeopt("artifacts", "reproduce", "it@1", *shelf, cwd=tmp_path)  # in a new, empty store
    assert "same" in said, said
