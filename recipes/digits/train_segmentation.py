"""Train the network of the recipe digits-segmentation and write segmentation.keras next to this file.

    python recipes/digits/train_segmentation.py

Takes about five minutes on one core. Needs edgeopt with the extras ``keras`` and ``data``.
"""

from pathlib import Path

import keras
import numpy as np
from canvases import CLASSES, COUNTS, SIDE, canvases
from keras import layers
from train_keras import compress

HERE = Path(__file__).resolve().parent
EPOCHS = 12
BATCH = 16


def block(x: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
    """Convolution, batch norm and ReLU."""
    x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def up(x: keras.KerasTensor, skip: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
    """Double height and width, append the features of the encoder, and mix both."""
    # Not Conv2DTranspose: int8 in TorchScript keeps transposed convolutions in float.
    x = layers.UpSampling2D(name=f"{name}_size")(x)
    x = layers.Concatenate(name=f"{name}_skip")([x, skip])
    return block(x, channels, name)


def unet() -> keras.Model:
    """Canvases ``[n, 64, 64, 1]``, values 0..1, to logits ``[n, 64, 64, 11]``: background, and 10 digits.

    A U-Net of four levels (Ronneberger et al. 2015, arXiv:1505.04597): the lowest one sees all of a digit.
    """
    image = keras.Input((SIDE, SIDE, 1), name="image")
    level1 = block(image, 8, "down1")
    level2 = layers.MaxPooling2D(name="pool1")(level1)
    level2 = block(block(level2, 16, "down2a"), 16, "down2b")
    level3 = layers.MaxPooling2D(name="pool2")(level2)
    level3 = block(block(level3, 32, "down3a"), 32, "down3b")
    level4 = layers.MaxPooling2D(name="pool3")(level3)
    level4 = block(block(level4, 48, "down4a"), 48, "down4b")
    x = up(level4, level3, 24, "up3")
    x = up(x, level2, 16, "up2")
    x = up(x, level1, 12, "up1")
    return keras.Model(image, layers.Conv2D(CLASSES + 1, 1, name="classes")(x), name="digits_unet")


def load(part: str, count: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[n, 64, 64, 1]`` in 0..1, preprocessed as in the recipe, and masks ``[n, 64, 64]``."""
    drawn = list(canvases(part, count, seed))
    images = np.stack([canvas.image for canvas in drawn]).astype(np.float32) / 255
    return images, np.stack([canvas.mask for canvas in drawn]).astype(np.uint8)


def mean_iou(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Intersection over union of the pixels of the whole set, averaged over the classes."""
    matrix = np.zeros((CLASSES + 1, CLASSES + 1))
    np.add.at(matrix, (expected.ravel(), predicted.ravel()), 1)
    hits = matrix.diagonal()
    return float(np.mean(hits / (matrix.sum(0) + matrix.sum(1) - hits)))


def main() -> None:
    keras.utils.set_random_seed(0)
    model = unet()
    rate = keras.optimizers.schedules.CosineDecay(5e-3, decay_steps=EPOCHS * -(-COUNTS["train"] // BATCH))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(rate, weight_decay=1e-2), loss=loss)
    for epoch in range(EPOCHS):
        # Other canvases in every epoch: this is the augmentation.
        images, masks = load("train", COUNTS["train"], seed=epoch)
        model.fit(images, masks, batch_size=BATCH, verbose=2)

    images, masks = load("evaluation")
    score = mean_iou(model.predict(images, verbose=0).argmax(-1), masks)
    # A clone has no optimizer, whose state would triple the size of the file.
    trained = keras.models.clone_model(model)
    trained.set_weights(model.get_weights())
    trained.save(HERE / "segmentation.keras")
    compress(HERE / "segmentation.keras")
    print(f"evaluation mIoU {100 * score:.2f} % on {len(masks)} canvases, {model.count_params()} parameters")


if __name__ == "__main__":
    main()
