"""Train the network of the recipe digits-detection and write detector.safetensors next to this file.

    python recipes/digits/train_detector.py

Takes about three minutes on one core. Needs edgeopt with the extras ``torch`` and ``data``.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from digits.canvases import SIDE, canvases  # noqa: E402
from digits.detector import CLASSES, STRIDES, digits_detector  # noqa: E402

from edgeopt.evaluation.decoders.grid import Grid  # noqa: E402
from edgeopt.evaluation.metrics.map50 import Map50  # noqa: E402
from edgeopt.evaluation.metrics.map50_95 import Map5095  # noqa: E402
from edgeopt.evaluation.tasks.detection import Detection  # noqa: E402
from edgeopt.model import Outputs  # noqa: E402

EPOCHS = 40
BATCH = 32
SMALL = 17
"""Boxes whose longer side is shorter are found on the fine grid, the others on the coarse one."""
FOCUS = 2.0
BALANCE = 0.25
"""Gamma and alpha of the focal loss (Lin et al. 2017)."""


def centres() -> tuple[np.ndarray, np.ndarray]:
    """Position of all cells in pixels ``[cells, 2]``, x and y, and their strides ``[cells]``."""
    places, strides = [], []
    for stride in STRIDES:
        steps = (np.arange(SIDE // stride) + 0.5) * stride
        rows, columns = np.meshgrid(steps, steps, indexing="ij")
        places.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
        strides.append(np.full(rows.size, stride))
    return np.concatenate(places), np.concatenate(strides)


PLACES, CELLS = centres()


def assigned(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class of each cell, -1 for the background, and distances to the sides ``[cells, 4]``, in cells.

    A box is learned by the cells whose centres are less than one cell away from its own centre.
    """
    classes, distances = np.full(len(PLACES), -1), np.zeros((len(PLACES), 4))
    for x1, y1, x2, y2, category, _ in boxes:
        stride = STRIDES[int(max(x2 - x1, y2 - y1) >= SMALL)]
        away = np.abs(PLACES - [(x1 + x2) / 2, (y1 + y2) / 2]).max(axis=1)
        sides = np.concatenate([PLACES - [x1, y1], [x2, y2] - PLACES], axis=1)
        mine = (stride == CELLS) & (away < stride) & (sides > 0).all(axis=1)
        classes[mine] = category
        distances[mine] = sides[mine] / stride
    return classes, distances


def load(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """New canvases as ``[n, 1, 64, 64]`` in 0..1, classes ``[n, cells]`` and distances ``[n, cells, 4]``."""
    made = list(canvases("train", seed=seed))
    images = np.stack([each.image for each in made]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    classes, distances = zip(*(assigned(each.boxes) for each in made), strict=True)
    return (
        torch.from_numpy(images),
        torch.from_numpy(np.stack(classes)),
        torch.from_numpy(np.stack(distances).astype(np.float32)),
    )


def focal_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """The sum over cells of logits ``[n, cells, 10]``; a class of -1 is the background."""
    wanted = (classes[..., None] == torch.arange(CLASSES)).float()
    missed = (torch.sigmoid(logits) - wanted).abs()
    balance = BALANCE * wanted + (1 - BALANCE) * (1 - wanted)
    losses = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (balance * missed**FOCUS * losses).sum()


def giou_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """The sum over boxes ``[k, 4]``, as distances from one point (Rezatofighi et al. 2019)."""

    def area(sides: Tensor) -> Tensor:
        return (sides[:, 0] + sides[:, 2]) * (sides[:, 1] + sides[:, 3])

    shared, hull = area(torch.minimum(found, wanted)), area(torch.maximum(found, wanted))
    union = area(found) + area(wanted) - shared
    return (1 - shared / union + (hull - union) / hull).sum()


def evaluate(model: torch.nn.Module) -> tuple[float, float, int]:
    """The metrics map50_95 and map50, and the number of canvases."""
    made = list(canvases("evaluation"))
    images = np.stack([each.image for each in made]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    with torch.no_grad():
        raw = model.eval()(torch.from_numpy(images)).numpy()
    decoded = Grid(strides=STRIDES, size=(SIDE, SIDE)).apply(Outputs((raw,), ("cells",)))
    boxes, labels = Detection().decide(decoded).values, [each.boxes for each in made]
    return Map5095().score(boxes, labels).value, Map50().score(boxes, labels).value, len(made)


def main() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = digits_detector()
    steps = EPOCHS * -(-len(load(0)[0]) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        images, classes, distances = load(epoch)
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            raw = model(images[rows]).transpose(1, 2)
            mine = classes[rows] >= 0
            losses = focal_loss(raw[..., 4:], classes[rows]) + giou_loss(
                raw[..., :4][mine], distances[rows][mine]
            )
            loss = losses / mine.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total * EPOCHS / steps:.3f}")

    whole, half, count = evaluate(model)
    save_file(model.state_dict(), HERE / "detector.safetensors")
    print(f"evaluation mAP50-95 {100 * whole:.2f} %, mAP50 {100 * half:.2f} % on {count} canvases")


if __name__ == "__main__":
    main()
