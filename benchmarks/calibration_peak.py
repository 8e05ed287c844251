"""Peak memory in MB of one quantizer: ``calibration_peak.py STAGE SAMPLES FOLDER``.

An untrained ResNet20 is converted to the input format of the stage; then the stage alone runs in a separate
process on seeded random images.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FORMATS = {
    "quantize_tflite": "tflite",
    "quantize_onnx": "onnx",
    "quantize_fx": "torchscript",
    "quantize_xnnpack": "executorch",
}
RECIPE = """
version: 1
name: untrained
model:
  factory: models.resnet:resnet20
  inputs: [{{name: image, shape: [1, 3, 32, 32], layout: NCHW}}]
  preprocess: {{scale: 1/255, layout: NHWC}}
data:
  calibration:
    uses: function
    with: {{function: "calibration_peak:images", arguments: {{count: {count}}}}}
optimize: {{int8: {{quantize: int8}}}}
formats: [{format}]
"""


def images(count: int) -> Iterator[tuple[np.ndarray]]:
    """Random images, generated one by one so that the data itself needs no memory."""
    random = np.random.default_rng(0)
    for _ in range(count):
        yield (random.integers(0, 256, (32, 32, 3)).astype(np.uint8),)


def main(stage: str, count: int, folder: Path) -> None:
    from edgeopt.commands.plan import plan
    from edgeopt.config import registry
    from edgeopt.devices.device import shipped
    from edgeopt.plugin import Context, Feed
    from edgeopt.run.build import build, look_up
    from edgeopt.run.executors.worker import ENVIRONMENT
    from edgeopt.run.store import Store

    sys.path[:0] = [str(Path(__file__).parent), str(shipped("recipes"))]
    folder.mkdir(exist_ok=True)
    recipe = folder / f"{stage}-{count}.yaml"
    recipe.write_text(RECIPE.format(format=FORMATS[stage], count=count))
    made = plan(recipe, data_root=shipped("recipes"))
    (branch,) = [branch for branch in made.branches if branch.variant == "int8"]
    index = next(i for i, s in enumerate(branch.stages) if registry.plugin_name(s) == stage)
    if len(sys.argv) == 4:  # build the input in workers first; then measure in a process without them
        few = plan(
            recipe, data_root=shipped("recipes"), overrides=["data.calibration.with.arguments.count=2"]
        )
        build(few, Store(folder / "store"), lambda event: None)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "measure"], check=True)
        return
    os.environ.update(ENVIRONMENT[branch.stages[index].worker])
    (built,) = [b for b in look_up(made, Store(folder / "store")) if b.branch.variant == "int8"]
    assert made.recipe.calibration is not None
    with Store(folder / "store").scratch() as scratch:
        feed = Feed(made.recipe.calibration, made.preprocessing)
        branch.stages[index].run(built.steps[index - 1].model, Context(scratch, feed, lambda message: None))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve())
