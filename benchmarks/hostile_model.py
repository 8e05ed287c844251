"""Write ResNet20 with its channels rescaled by up to 100x, and a recipe for it, to a folder.

    python benchmarks/hostile_model.py FOLDER

The rescaled network computes the same function, but its accuracy collapses with per-tensor int8.
"""

import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from rescaled_networks import RESNET20, rescaled  # noqa: E402

FACTOR = 100.0


def main(folder: Path) -> None:
    data = Path(os.environ["EDGEOPT_DATA"]).resolve()
    stored = torch.load(data / RESNET20.weights, map_location="cpu", weights_only=True)["state_dict"]
    state = {name.removeprefix("module."): value for name, value in stored.items()}
    changed = rescaled(state, RESNET20.joints, factor=FACTOR)
    save_file({name: value.contiguous() for name, value in changed.items()}, folder / "hostile.safetensors")
    shutil.copytree(ROOT / "recipes" / "models", folder / "models", dirs_exist_ok=True)
    (folder / "hostile.yaml").write_text(
        "version: 1\nname: hostile\nmodel:\n"
        "  factory: 'models.resnet:resnet20'\n  weights: hostile.safetensors\n"
        "  inputs: [{name: image, shape: [1, 3, 32, 32], layout: NCHW}]\n"
        "  preprocess:\n    {scale: 1/255, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225],\n"
        "     layout: NHWC}\n"
        f"data:\n  calibration: {{uses: npz, with: {{path: {data / 'cifar10' / 'calibration512.npz'}}}}}\n"
        f"  evaluation: {{uses: npz, with: {{path: {data / 'cifar10' / 'test446.npz'}}}}}\n"
        "metric: top1\nformats: [tflite, onnx, torchscript, executorch]\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
