"""Train the network of the recipe digits-keras and write digits.keras next to this file.

    python recipes/digits/train_keras.py

Takes under a minute on two cores. Needs edgeopt with the extras ``keras`` and ``data``.
"""

import zipfile
from pathlib import Path

import keras
import numpy as np
from keras import layers

from edgeopt.evaluation.datasets.digits import Digits

HERE = Path(__file__).resolve().parent
EPOCHS = 40
BATCH = 64


def separable_block(x: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
    """Depthwise and pointwise convolution around a residual connection."""
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    y = layers.BatchNormalization(name=f"{name}_bn1")(y)
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_pointwise")(y)
    y = layers.BatchNormalization(name=f"{name}_bn2")(y)
    y = layers.Add(name=f"{name}_add")([x, y])
    return layers.ReLU(name=f"{name}_relu2")(y)


def digits_cnn(channels: int = 32) -> keras.Model:
    """Digits in ``[n, 8, 8, 1]``, values 0..1, to probabilities of 10 classes."""
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name="conv1")(image)
    x = layers.BatchNormalization(name="bn1")(x)
    x = layers.ReLU(name="relu1")(x)
    x = separable_block(x, channels, "block1")
    x = layers.Conv2D(channels, 3, strides=2, padding="same", use_bias=False, name="conv2")(x)
    x = layers.BatchNormalization(name="bn2")(x)
    x = layers.ReLU(name="relu2")(x)
    x = separable_block(x, channels, "block2")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(10, activation="softmax", name="probabilities")(x)
    return keras.Model(image, x, name="digits_cnn")


def load(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``[n, 8, 8, 1]`` in 0..1, preprocessed as in the recipe, and labels."""
    samples = list(Digits(part=part).samples())
    images = np.stack([s.inputs[0] for s in samples]).astype(np.float32) / 16
    return images, np.array([s.label for s in samples])


def shifted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Move every image by at most one pixel: cheap augmentation."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    moves = random.integers(0, 3, (len(images), 2))
    return np.stack([p[d : d + 8, r : r + 8] for p, (d, r) in zip(padded, moves, strict=True)])


def compress(file: Path) -> None:
    """Deflate the members of a .keras file, which Keras stores uncompressed; this saves three quarters."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def main() -> None:
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    images, labels = load("train")
    # Each epoch has its own shifts, computed in advance so that a single call to fit is enough.
    passes = [random.permutation(len(labels)) for _ in range(EPOCHS)]
    x = np.concatenate([shifted(images[order], random) for order in passes])
    y = np.concatenate([labels[order] for order in passes])
    model = digits_cnn()
    rate = keras.optimizers.schedules.CosineDecay(1e-2, decay_steps=-(-len(y) // BATCH))
    model.compile(keras.optimizers.AdamW(rate, weight_decay=1e-2), loss="sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=2)

    images, labels = load("evaluation")
    accuracy = float((model.predict(images, verbose=0).argmax(1) == labels).mean())
    # A clone has no optimizer, whose state would triple the size of the file.
    trained = keras.models.clone_model(model)
    trained.set_weights(model.get_weights())
    trained.save(HERE / "digits.keras")
    compress(HERE / "digits.keras")
    print(f"evaluation accuracy {100 * accuracy:.2f} % on {len(labels)} digits")


if __name__ == "__main__":
    main()
