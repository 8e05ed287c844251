"""Networks in Keras, each built from the given ``keras``: that of Keras 3 or tf_keras."""

from typing import Any


def mobilenet_v2(keras: Any) -> Any:
    return keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10)


def mobilenet_v3(keras: Any) -> Any:
    """With the rescaling of pixels and the hard swish inside."""
    return keras.applications.MobileNetV3Small((96, 96, 3), alpha=0.75, weights=None, classes=10)


def efficientnet(keras: Any) -> Any:
    """With Rescaling and Normalization inside."""
    return keras.applications.EfficientNetB0(weights=None, input_shape=(64, 64, 3), classes=10)


def densenet(keras: Any) -> Any:
    from keras.src.applications.densenet import DenseNet

    return DenseNet((2, 2, 2, 2), weights=None, input_shape=(64, 64, 3), classes=10)


def convnext(keras: Any) -> Any:
    from keras.src.applications.convnext import ConvNeXt

    sizes = {"depths": [1, 1, 2, 1], "projection_dims": [16, 32, 48, 64]}
    return ConvNeXt(**sizes, weights=None, input_shape=(64, 64, 3), classes=10)


def _block(keras: Any, x: Any, width: int, stride: int = 1) -> Any:
    layers = keras.layers
    x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def resnet(keras: Any) -> Any:
    layers = keras.layers
    image = keras.Input((32, 32, 3), name="image")
    x = _block(keras, image, 16)
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        inner = _block(keras, x, width, stride)
        inner = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same")(inner))
        short = layers.Conv2D(width, 1, stride, padding="same")(x) if stride > 1 else x
        x = layers.ReLU()(layers.Add()([inner, short]))
    return keras.Model(image, layers.Dense(10, name="scores")(layers.GlobalAveragePooling2D()(x)))


def ds_cnn(keras: Any) -> Any:
    layers = keras.layers
    given = keras.Input((49, 10, 1), name="spectrogram")
    x = layers.Conv2D(32, (10, 4), 2, padding="same", use_bias=False)(given)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for _ in range(3):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2D(32, 1, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.2)(layers.AveragePooling2D((25, 5))(x))
    return keras.Model(given, layers.Dense(12, activation="softmax", name="words")(layers.Flatten()(x)))


def separable(keras: Any) -> Any:
    """Xception's blocks: SeparableConv2D with a residual."""
    layers = keras.layers
    image = keras.Input((48, 48, 3), name="image")
    x = _block(keras, image, 16, 2)
    for width in (24, 32):
        inner = layers.SeparableConv2D(width, 3, padding="same", use_bias=False)(x)
        inner = layers.MaxPooling2D(3, 2, padding="same")(layers.BatchNormalization()(inner))
        x = layers.Add()([inner, layers.Conv2D(width, 1, 2, padding="same")(x)])
    return keras.Model(image, layers.Dense(8, name="scores")(layers.GlobalAveragePooling2D()(x)))


def unet(keras: Any) -> Any:
    layers = keras.layers
    image = keras.Input((64, 64, 3), name="image")
    first = _block(keras, image, 12)
    second = _block(keras, layers.MaxPooling2D()(first), 24)
    x = _block(keras, layers.MaxPooling2D()(second), 48)
    for width, skip in ((24, second), (12, first)):
        x = layers.Conv2DTranspose(width, 3, 2, padding="same")(x)
        x = _block(keras, layers.Concatenate()([x, skip]), width)
    return keras.Model(image, layers.Conv2D(4, 1, activation="softmax", name="classes")(x))


def autoencoder(keras: Any) -> Any:
    """The anomaly detector of MLPerf Tiny, narrow: dense layers around a bottleneck."""
    layers = keras.layers
    given = keras.Input((128,), name="frames")
    x = given
    for width in (64, 64, 8, 64, 64):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(width)(x)))
    return keras.Model(given, layers.Dense(128, name="restored")(x))


def super_resolution(keras: Any) -> Any:
    """Nearest and bilinear upsampling, added."""
    layers = keras.layers
    image = keras.Input((24, 24, 3), name="image")
    x = layers.Conv2D(24, 5, padding="same", activation="relu")(image)
    x = layers.Conv2D(24, 3, padding="same")(layers.UpSampling2D(2)(x))
    base = layers.UpSampling2D(2, interpolation="bilinear")(image)
    rest = layers.Conv2D(3, 3, padding="same")(layers.LeakyReLU(negative_slope=0.1)(x))
    return keras.Model(image, layers.Add(name="large")([base, rest]))


def prelu_face(keras: Any) -> Any:
    layers = keras.layers
    x = image = keras.Input((64, 64, 3), name="image")
    for width in (16, 24, 32):
        x = layers.Conv2D(width, 3, 2, padding="same", use_bias=False)(x)
        x = layers.PReLU(shared_axes=(1, 2))(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(8, use_bias=False)(x)
    return keras.Model(image, layers.Dense(24, name="embedding")(layers.Flatten()(x)))


def group_norm(keras: Any) -> Any:
    """Augmentation layers, Rescaling and group normalization."""
    layers = keras.layers
    image = keras.Input((48, 48, 3), name="image")
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(image))
    x = layers.Rescaling(0.5, offset=0.1)(x)
    for width in (16, 32):
        x = layers.Conv2D(width, 3, 2, padding="same")(x)
        x = layers.Activation("gelu")(layers.GroupNormalization(4)(x))
    return keras.Model(image, layers.Dense(8, name="scores")(layers.GlobalAveragePooling2D()(x)))


def three_outputs(keras: Any) -> Any:
    layers = keras.layers
    image = keras.Input((64, 64, 3), name="image")
    x = _block(keras, _block(keras, image, 16, 2), 32, 2)
    flat = layers.GlobalAveragePooling2D()(x)
    made = {
        "heat": layers.Conv2D(3, 1, activation="sigmoid", name="heat")(x),
        "kind": layers.Dense(5, name="kind")(flat),
        "age": layers.Dense(1, activation="softplus", name="age")(flat),
    }
    return keras.Model(image, made)


def siamese(keras: Any) -> Any:
    layers = keras.layers
    left, right = keras.Input((32, 32, 3), name="left"), keras.Input((32, 32, 3), name="right")
    given = keras.Input((32, 32, 3))
    flat = layers.GlobalAveragePooling2D()(_block(keras, _block(keras, given, 16, 2), 24, 2))
    trunk = keras.Model(given, layers.Dense(16)(flat), name="trunk")
    first, second = trunk(left), trunk(right)
    made = layers.Dense(2, name="same")(layers.Concatenate()([layers.Subtract()([first, second]), first]))
    return keras.Model([left, right], made)


def audio(keras: Any) -> Any:
    """Conv1D over mono audio."""
    layers = keras.layers
    x = given = keras.Input((2000, 1), name="audio")
    for width, size, stride in ((16, 40, 4), (24, 5, 2), (32, 5, 2)):
        x = layers.Conv1D(width, size, stride, use_bias=False)(x)
        x = layers.MaxPooling1D(2)(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(given, layers.Dense(8, name="scores")(layers.GlobalAveragePooling1D()(x)))


def tabular(keras: Any) -> Any:
    layers = keras.layers
    numbers = keras.Input((10,), name="numbers")
    kind = keras.Input((2,), dtype="int32", name="categories")
    known = layers.Flatten()(layers.Embedding(50, 6)(kind))
    x = layers.Concatenate()([layers.BatchNormalization()(numbers), known])
    x = layers.Dense(32, activation="elu")(layers.Dense(64, activation="relu")(x))
    return keras.Model([numbers, kind], layers.Dense(3, name="scores")(x))


def text(keras: Any) -> Any:
    layers = keras.layers
    tokens = keras.Input((20,), dtype="int32", name="tokens")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(500, 24)(tokens))
    x = layers.Dense(24, activation="relu")(x)
    return keras.Model(tokens, layers.Dense(4, name="scores")(x))


def lstm(keras: Any) -> Any:
    layers = keras.layers
    given = keras.Input((24, 8), name="series")
    x = layers.LSTM(24)(layers.LSTM(24, return_sequences=True)(given))
    return keras.Model(given, layers.Dense(5, name="scores")(x))


def gru(keras: Any) -> Any:
    layers = keras.layers
    given = keras.Input((24, 8), name="series")
    return keras.Model(given, layers.Dense(5, name="scores")(layers.GRU(32)(given)))


def bilstm(keras: Any) -> Any:
    layers = keras.layers
    given = keras.Input((24, 8), name="series")
    x = layers.Bidirectional(layers.LSTM(16, return_sequences=True))(given)
    return keras.Model(given, layers.Dense(6, activation="softmax", name="steps")(x))


def bert(keras: Any) -> Any:
    """An encoder of ids and mask, with Keras's own attention."""
    layers = keras.layers
    ids = keras.Input((16,), dtype="int32", name="ids")
    mask = keras.Input((16,), dtype="int32", name="mask")
    x = layers.LayerNormalization()(layers.Embedding(300, 32)(ids))
    wide = layers.Reshape((1, 16))(mask)
    for _ in range(2):
        found = layers.MultiHeadAttention(4, 8)(x, x, attention_mask=wide)
        x = layers.LayerNormalization()(layers.Add()([x, found]))
        found = layers.Dense(32)(layers.Dense(96, activation="gelu")(x))
        x = layers.LayerNormalization()(layers.Add()([x, found]))
    return keras.Model([ids, mask], layers.Dense(4, name="scores")(layers.Flatten()(x)))
