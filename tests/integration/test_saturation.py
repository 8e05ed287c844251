"""8-bit accumulation that saturates in silence, on an x86 processor that does it: under qemu, without VNNI.

onnxruntime's int8 kernels for AVX2 add pairs of products in 16 bits. With its own defaults the keyword model
of MLPerf Tiny falls from 90 % to 8 % there; on the machine that quantizes nothing may be seen of it.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeopt.commands.optimize import optimize

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
SAMPLES = 16

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("kept_workers"),
    pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64: apt-get install qemu-user-static"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="this Python is not for x86-64"),
]

OVERRIDES = {
    "optimize": "{float: {}, usual: {quantize: int8}, "
    "whole_range: {quantize: {scheme: int8, weight_type: int8}}}",
    "formats": "[onnx]",
    "gates": "[]",
}
COMPARE = """
import json, sys
from pathlib import Path
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.evaluation.diagnosis import causes
from edgeopt.evaluation.layer_comparison import Data, compare
from edgeopt.model import Model, Preprocessing
from edgeopt.plugin import Feed

reference, quantized = (Model.model_validate_json(text) for text in sys.argv[1:3])
data = Data("calibration", Feed(Npz(path=Path(sys.argv[3])), Preprocessing()))
found = compare(reference, quantized, [data], int(sys.argv[4]))
print(json.dumps({
    "snr_db": found.snr_db,
    "agreement": found.agreement,
    "first": found.layers[1 if found.layers[0].operator == "input" else 0].name,
    "causes": [cause.model_dump(mode="json") for cause in causes(found)],
}))
"""


@pytest.fixture(scope="module")
def diagnoses(needs_real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What layer-by-layer comparison finds on a processor with AVX2 and without VNNI, per variant."""
    out = tmp_path_factory.mktemp("kws")
    settings = [f"{key}={value}" for key, value in OVERRIDES.items()]
    done = optimize("mlperf-tiny-kws", out=out, store=out / "store", overrides=settings)
    # 3: on a processor without VNNI, `whole_range` saturates here, too.
    assert done.exit_code in (0, 3), done
    from edgeopt.formats.source import inspect

    files = {path.stem: path for path in out.rglob("*.onnx") if "store" not in path.relative_to(out).parts}
    models = {name: inspect(path).model.model_dump_json() for name, path in files.items()}
    emulated = [str(QEMU), "-cpu", "Haswell", sys.executable, "-c", COMPARE]
    found = {}
    for variant in ("whole_range", "usual"):
        data = needs_real_data / "kws" / "calibration100.npz"
        run = subprocess.run(
            [*emulated, models["float"], models[variant], str(data), str(SAMPLES)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-2000:]
        found[variant] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def test_the_saturating_first_layer_is_found_and_saturation_is_named(diagnoses: dict[str, Any]) -> None:
    found = diagnoses["whole_range"]
    assert found["agreement"] < 0.5
    cause = found["causes"][0]
    assert cause["kind"] == "saturation"
    assert cause["layers"] == ["conv2d"] and "conv2d/" in found["first"]
    assert "saturating 8-bit accumulation on this CPU" in cause["text"]
    assert cause["remedies"][0] == {"quantize": {"weight_type": "auto"}}


def test_what_edgeopt_does_by_itself_does_not_saturate_there(diagnoses: dict[str, Any]) -> None:
    found = diagnoses["usual"]
    assert "saturation" not in [cause["kind"] for cause in found["causes"]]
    assert found["snr_db"] > 20
    assert found["agreement"] > 0.9
