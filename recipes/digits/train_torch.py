"""Train the network of the recipe digits-torch and write digits.safetensors next to this file.

    python recipes/digits/train_torch.py

Takes under a minute on two cores. Needs edgeopt with the extras ``torch`` and ``data``.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from models.digits_cnn import digits_cnn  # noqa: E402

from edgeopt.evaluation.datasets.digits import Digits  # noqa: E402

EPOCHS = 40
BATCH = 64


def load(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images ``[n, 1, 8, 8]`` in 0..1, preprocessed as in the recipe, and labels."""
    samples = list(Digits(part=part).samples())
    images = np.stack([s.inputs[0] for s in samples]).transpose(0, 3, 1, 2).astype(np.float32) / 16
    return torch.from_numpy(images), torch.tensor([s.label for s in samples])


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move the whole batch by at most one pixel: cheap augmentation."""
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]


def main() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, labels = load("train")
    model = digits_cnn()
    steps = EPOCHS * -(-len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            loss = cross_entropy(model(shifted(images[rows], generator)), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    model.eval()
    images, labels = load("evaluation")
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    save_file(model.state_dict(), HERE / "digits.safetensors")
    print(f"evaluation accuracy {100 * accuracy:.2f} % on {len(labels)} digits")


if __name__ == "__main__":
    main()
