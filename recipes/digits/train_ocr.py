"""Train the network of the recipe digits-ocr and write ocr.safetensors next to this file.

    python recipes/digits/train_ocr.py

Takes a few minutes on one core. Needs edgeopt with the extras ``torch`` and ``data``.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import ctc_loss, log_softmax

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from digits.ocr import digits_ocr, greedy  # noqa: E402
from digits.strips import HEIGHT, LENGTHS, Part, strip, strips  # noqa: E402

from edgeopt.evaluation.datasets.digits import Digits  # noqa: E402

STEPS = 1500
BATCH = 32


def to_input(images: list[np.ndarray]) -> torch.Tensor:
    """Strips ``[n, 1, height, width]`` in 0..1, preprocessed as in the recipe."""
    return torch.from_numpy(np.stack(images).reshape(len(images), 1, HEIGHT, -1).astype(np.float32) / 255)


def load(part: Part) -> tuple[torch.Tensor, list[list[int]]]:
    """Inputs and labels of a part."""
    samples = list(strips(part))
    return to_input([s.inputs[0] for s in samples]), [np.asarray(s.label).tolist() for s in samples]


def edits(one: list[int], other: list[int]) -> int:
    """Edit distance of two sequences (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for count, token in enumerate(one, 1):
        last, row = row, [count]
        for place, wanted in enumerate(other):
            row.append(min(row[-1] + 1, last[place + 1] + 1, last[place] + (token != wanted)))
    return row[-1]


def main() -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    digits = [(s.inputs[0][:, :, 0], int(s.label or 0)) for s in Digits(part="train").samples()]
    model = digits_ocr()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    for step in range(STEPS):
        # New strips in every step: this is the augmentation.
        lengths = torch.from_numpy(random.integers(LENGTHS[0], LENGTHS[1] + 1, BATCH))
        chosen = [[digits[i] for i in random.integers(0, len(digits), int(k))] for k in lengths]
        x = to_input([strip([image for image, _ in row], random) for row in chosen])
        targets = torch.tensor([label + 1 for row in chosen for _, label in row])
        logits = log_softmax(model(x), dim=2).transpose(0, 1)
        loss = ctc_loss(logits, targets, torch.full((BATCH,), logits.shape[0]), lengths)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)

    model.eval()
    images, labels = load("evaluation")
    with torch.no_grad():
        found = greedy(model(images))
    errors = sum(edits(one, other) for one, other in zip(found, labels, strict=True))
    save_file(model.state_dict(), HERE / "ocr.safetensors")
    rate = errors / sum(map(len, labels))
    print(f"character error rate {100 * rate:.2f} % on {len(labels)} strips")


if __name__ == "__main__":
    main()
