"""From a real run to the firmware engineer's folder: registry, a light install, a C compiler, real data."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from registry import DOCKER_REGISTRY, docker_registry
from test_artifacts import keys
from test_firmware import C99, CORTEX_M4, build, self_test
from toy_tflite import toy

ROOT = Path(__file__).resolve().parent.parent.parent
KIT = "golden_vectors.c", "model_data.c", "preprocess.c", "self_test.c"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution: those of `make release`, or built here."""
    folder = Path(os.environ.get("EDGEOPT_DIST") or build_release(tmp_path_factory.mktemp("dist")))
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel.resolve(), source.resolve()


def build_release(folder: Path, root: Path = ROOT) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--directory", folder]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def light(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the base package alone, installed from the wheel."""
    folder = tmp_path_factory.mktemp("light")
    python = folder / "environment" / "bin" / "python"
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
    wheel, _ = distributions
    command = [python, "-m", "pip", "install", *quiet, "--constraint", ROOT / "constraints.txt", wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
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


def edgeopt(*arguments: str | Path, python: Path | str = sys.executable, cwd: Path, code: int = 0) -> str:
    command = [python, "-m", "edgeopt", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def test_the_distributions_contain_every_file_of_the_package(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    listing = ["git", "ls-files", "pipeline/edgeopt", "recipes", "devices"]
    tracked = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    expected = {
        name.removeprefix("pipeline/") if name.startswith("pipeline/") else f"edgeopt/_data/{name}"
        for name in tracked
        if name and (ROOT / name).is_file()
    }
    wheel, source = distributions
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("edgeopt/")}
    assert expected <= packed and "edgeopt/py.typed" in packed
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    (again,) = build_release(tmp_path / "dist", root).glob("*.whl")
    assert packed <= {*zipfile.ZipFile(again).namelist()}


def test_the_base_install_is_light(light: Path) -> None:
    environment = light.parent.parent
    size = sum(file.lstat().st_size for file in environment.rglob("*") if not file.is_symlink())
    packages = [*environment.glob("lib/python*/site-packages/*.dist-info")]
    assert size < 120e6 and len(packages) <= 30
    assert not any(path.name.startswith(("numpy-", "scipy-", "torch-")) for path in packages)


def test_without_numpy_all_is_declared_and_nothing_is_computed(light: Path, tmp_path: Path) -> None:
    program = """
from edgeopt.config import absent, registry
absent.stand_in()
from edgeopt.plugin import KINDS
print({base.plugin_kind: len(registry.plugins(base)) for base in KINDS})
"""
    done = subprocess.run([light, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "'metrics'" in done.stdout, done.stderr

    def run(*arguments: str | Path, code: int = 0) -> str:
        return edgeopt(*arguments, python=light, cwd=tmp_path, code=code)

    assert "quantize" in run("schema", "recipe")
    assert "✗ cortex-m" in run("devices", "list")
    assert "✗ numpy missing" in run("doctor") and '"numpy": null' in run("doctor", "--json")
    assert "library is empty" in run("artifacts", "list")
    planned = run("plan", "digits-keras", code=2)  # the frameworks are missing
    assert "the data is not checked: this needs numpy" in planned
    assert (
        "keras_to_tflite needs tensorflow" in planned and "pip install 'edgeopt[keras] @ file://" in planned
    )
    fixed = tmp_path / "fixed.tflite"
    fixed.write_bytes(toy())
    assert "no findings" in run("lint", fixed, "--device", "cortex-m")
    assert "the sparsity of the weights is unknown without NumPy" in run("inspect", fixed)
    measured = run("profile", fixed, code=3)
    assert "this needs numpy" in measured and "pip install 'edgeopt[numerics] @ file://" in measured


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
