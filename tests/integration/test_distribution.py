"""A format of two files, its runtime and a stage from another distribution: nothing here knows of them."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import RECIPES
from test_artifacts import keys

DISTRIBUTION = Path(__file__).resolve().parent.parent / "distributions" / "layers"
NANO = """
name: nano
runtimes: {layers: numpy_layers}
limits: {flash: 50 KiB}
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder of packages with the distribution in it, as an installer leaves it."""
    about = tomllib.loads((DISTRIBUTION / "pyproject.toml").read_text("utf-8"))["project"]
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "edgeopt_layers").symlink_to(DISTRIBUTION / "edgeopt_layers")
    info = packages / f"edgeopt_layers-{about['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    )
    sections = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in about["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(sections))
    return packages


def test_it_passes_the_conformance_tests(installed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_conformance.py"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=DISTRIBUTION,
        env=os.environ | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout  # the format, its runtime and the stage


def test_it_goes_all_the_way(installed: Path, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "nano.yaml").write_text(NANO)
    recipe = write_recipe(
        "gates: [{metric: top1, min: 0.98}, {metric: top1, max_drop: 0.0}]\n",
        formats="[onnx, layers]",
        devices="[host, nano]",
    )
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}

    def edgeopt(*arguments: str | Path, code: int = 0) -> str:
        command = [sys.executable, "-m", "edgeopt", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    # planned
    plan = edgeopt("plan", recipe)
    assert "float as layers" in plan and "onnx_to_layers" in plan

    # built, stored, measured, linted: on the host it runs; on the small device it is too large for the flash
    run = tmp_path / "run"
    edgeopt("optimize", recipe, "--out", run, code=3)
    report = json.loads((run / "report.json").read_text())
    rows = {(row["format"], row["device"]): row for row in report["results"]}
    host = rows["layers", "host"]
    assert host["status"] == "ok" and host["runtime"].startswith("numpy_layers ")
    assert host["measurements"]["top1"]["value"] == rows["onnx", "host"]["measurements"]["top1"]["value"]
    assert host["measurements"]["agreement"]["value"] == 1.0
    assert host["hops"][-1]["stage"] == "onnx_to_layers" and host["hops"][-1]["snr_db"] > 100
    assert host["measurements"]["latency_p50_ms"]["value"] > 0
    main, weights = run / "models" / "float.layers", run / "models" / "float.weights"
    assert host["artifact"]["parts"] == ["models/float.weights"]
    assert host["artifact"]["size_bytes"] == main.stat().st_size + weights.stat().st_size
    nano = rows["layers", "nano"]
    assert nano["status"] != "ok" and "flash" in nano["reason"]
    again = json.loads(edgeopt("plan", recipe, "--json"))
    assert [step["cached"] for branch in again["branches"] for step in branch["stages"]] == [True] * 3
    edgeopt("optimize", recipe, "--out", tmp_path / "again", code=3)
    for file in (main, weights):
        assert (tmp_path / "again" / "models" / file.name).read_bytes() == file.read_bytes()
    assert "size_bytes" in edgeopt("inspect", main, "--json")
    assert "flash" in edgeopt("lint", main, "--device", "nano", code=1)

    # reported
    for name in ("report.md", "report.html", "devices/host.md"):
        assert "layers" in (run / name).read_text("utf-8")

    # published, signed, and pulled elsewhere
    private, public = keys(tmp_path, "key")
    shelf = (tmp_path / "shelf" / "digits").as_uri()
    edgeopt("artifacts", "push", run, "--to", shelf, "--sign", private, "--version", "1.0")
    out = tmp_path / "pulled"
    source = [f"{shelf}@1.0", "--library", tmp_path / "elsewhere", "--require-signature", public]
    pulled = json.loads(
        edgeopt(
            "artifacts", "pull", *source, "--device", "host", "--format", "layers", "--out", out, "--json"
        )
    )
    assert pulled["files"] == ["digits.layers", "digits.weights"]
    assert (out / "digits.weights").read_bytes() == weights.read_bytes()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["file"]["name"] == "digits.layers"
    assert [part["name"] for part in manifest["parts"]] == ["digits.weights"]

    # verified, and not after a change to the second file
    edgeopt("artifacts", "verify", out, "--require-signature", public)
    assert "same" in edgeopt("artifacts", "reproduce", out, "--beside", RECIPES / "digits")
    (out / "digits.weights").write_bytes(bytes(len(weights.read_bytes())))
    edgeopt("artifacts", "verify", out, code=1)
