"""Pruning and clustering Keras models: channel removal is exact, unprunable layers are named, zeros stay.

Everything runs in a separate process, so that TensorFlow and torch are never loaded together.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgeopt.stages.cluster_keras import ClusterKeras
from edgeopt.stages.prune_keras import PruneKeras

if any(importlib.util.find_spec(name) is None for name in ("tensorflow", "keras")):
    pytest.skip("needs the extra 'keras'", allow_module_level=True)

MODEL = Path(__file__).resolve().parent.parent / "recipes" / "digits" / "digits.keras"

PRELUDE = """
import json, sys
from pathlib import Path
import numpy as np
import keras
from keras import layers as L
from edgeopt.errors import StageError
from edgeopt.formats.keras.files import archive as keras_archive
from edgeopt.formats.keras.prune import sparsity as keras_sparsity
from edgeopt.formats.keras.prune.channels import Channels
from edgeopt.formats.keras.prune.selection import choose, remaining_channels
from edgeopt.formats.keras.graph.layers import costs, graph_of
from edgeopt.formats.keras.prune.remove_channels import importance, without
from edgeopt.model import Model
from edgeopt.evaluation.datasets.digits import Digits
from edgeopt.model import Preprocessing
from edgeopt.plugin import Context, Feed
from edgeopt.stages.cluster_keras import ClusterKeras
from edgeopt.stages.prune_keras import PruneKeras

root = Path(sys.argv[1])
report = {}
keras.utils.set_random_seed(3)

def context(name, notes=None):
    folder = root / name
    folder.mkdir(parents=True)
    return Context(folder, None, lambda line: None, note=(notes if notes is not None else []).append)

def saved(network, name):
    rough(network)
    network.save(root / f"{name}.keras")
    return Model(format="keras", path=root / f"{name}.keras")

def rough(network):
    # Initial statistics are all zero and one, which would hide a permutation.
    random = np.random.default_rng(1)
    for layer in network.layers:
        if hasattr(layer, "layers"):
            rough(layer)
        elif layer.get_weights():
            layer.set_weights([
                w + (random.uniform(0.1, 1, w.shape) if w.ndim == 1 else 0) for w in layer.get_weights()
            ])

def values(network, count=3):
    random = np.random.default_rng(0)
    return [random.standard_normal([count, *t.shape[1:]]).astype(np.float32) for t in network.inputs]

def refused(stage, model, name):
    try:
        stage.run(model, context(name))
    except StageError as problem:
        return str(problem)
    return "not refused"

def every_layer(network, prefix=""):
    for layer in network.layers:
        if hasattr(layer, "layers"):
            yield from every_layer(layer, prefix + layer.name + "/")
        else:
            yield prefix + layer.name, layer

def silence(network, channels, removed):
    gone = set(removed.tolist())
    for path, layer in every_layer(network):
        arrays = layer.get_weights()
        for index, axes in channels.weights.get(path, {}).items():
            for axis, atoms in axes.items():
                if index < len(arrays):
                    lost = [root in gone for root in channels.root(atoms).tolist()]
                    np.moveaxis(arrays[index], axis, 0)[np.array(lost, bool)] = 0
        if arrays:
            layer.set_weights(arrays)

def exact(network, **options):
    rough(network)
    graph = graph_of(network, "toy")
    channels = Channels(graph)
    usual = dict(share=0.5, round_to=4, keep=(), layers={})
    bundles = channels.bundles()
    choice = choose(
        bundles, remaining_channels(bundles, **usual | options), lambda b: importance(channels, b)
    )
    smaller = without(network, channels, choice.removed, "toy")
    silence(network, channels, choice.removed)
    data = values(network)
    data = data if len(data) > 1 else data[0]
    pairs = zip(*(x if isinstance(x, list) else [x] for x in (network(data), smaller(data))), strict=True)
    before, after = costs(network, graph), costs(smaller, graph_of(smaller, "toy"))
    return {
        "error": max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs),
        "kept": {"+".join(paths): [old, new] for paths, old, new in choice.counts},
        "frozen": {"+".join(paths): reason for paths, reason in choice.frozen},
        "macs": [before.macs, after.macs], "parameters": [before.parameters, after.parameters],
        "sizes": {path: [list(w.shape) for w in layer.weights] for path, layer in every_layer(smaller)},
    }

def block(x, filters, name, stride=1):
    y = L.Conv2D(filters, 3, stride, "same", use_bias=False, name=name + "_a")(x)
    y = L.ReLU()(L.BatchNormalization(name=name + "_n")(y))
    y = L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", name=name + "_b")(y))
    if stride > 1 or x.shape[-1] != filters:
        x = L.Conv2D(filters, 1, stride, name=name + "_s")(x)
    return L.ReLU()(L.Add()([x, y]))

def residual():
    x = image = L.Input((8, 8, 3), name="image")
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same", name="stem")(x)))
    x = block(block(x, 8, "one"), 16, "two", 2)
    return keras.Model(image, L.Dense(5, activation="softmax", name="classes")(L.GlobalAveragePooling2D()(x)))
"""

EXACT = """
report["residual"] = exact(residual())

# Branches side by side; a depthwise convolution that doubles its channels; a separable one
x = image = L.Input((8, 8, 3))
a = L.Conv2D(8, 3, padding="same", activation="relu", name="a")(x)
b = L.SeparableConv2D(16, 3, padding="same", depth_multiplier=2, activation="sigmoid", name="b")(x)
x = L.Concatenate(name="side")([a, b])
x = L.DepthwiseConv2D(3, depth_multiplier=2, padding="valid", name="deep")(x)
x = L.BatchNormalization()(L.ZeroPadding2D(1)(L.LeakyReLU()(x)))
x = L.PReLU(shared_axes=[1, 2])(L.MaxPooling2D()(x))
x = L.SeparableConv2D(12, 3, padding="same", name="c")(x)
x = L.Dropout(0.5)(L.Flatten()(x))
x = L.Dense(16, activation="tanh", name="hidden")(x)
report["side_by_side"] = exact(keras.Model(image, L.Dense(3, name="scores")(x)))

# A concatenation is added to another tensor: its parts are coupled to parts of that
x = image = L.Input((4, 4, 8))
a, b = L.Conv2D(8, 1, name="a")(x), L.Conv2D(16, 1, name="b")(x)
c = L.Conv2D(24, 1, name="c")(x)
x = L.Add()([L.Concatenate()([a, b]), c])
report["bound_parts"] = exact(keras.Model(image, L.Conv2D(2, 1, name="last")(x)))

# Squeeze and excite; bare operations; two outputs, two inputs; up again
x = image = L.Input((8, 8, 4))
other = L.Input((6,))
x = L.Conv2D(16, 3, padding="same", name="first")(x)
s = L.Dense(8, activation="relu", name="squeeze")(L.GlobalAveragePooling2D()(x))
s = L.Reshape((1, 1, 16))(L.Dense(16, activation="sigmoid", name="excite")(s))
x = L.Multiply()([x, s])
x = x + L.Conv2D(16, 1, name="bare")(x) * 0.5
x = L.UpSampling2D()(L.Conv2DTranspose(8, 3, 2, name="up")(x))
y = L.Dense(8, name="from_other")(other)
x = x * L.Reshape((1, 1, 8))(y)
out = [L.Conv2D(3, 1, name="map")(x), L.Dense(4, name="scores")(L.GlobalMaxPooling2D()(x))]
report["excite"] = exact(keras.Model([image, other], out))

# A model inside a Sequential model, and a layer that is used twice
inner_in = L.Input((8, 8, 12), name="inner_in")
shared = L.Conv2D(12, 3, padding="same", name="shared")
inner = keras.Model(inner_in, L.BatchNormalization()(shared(L.ReLU()(shared(inner_in)))), name="inner")
report["nested"] = exact(keras.Sequential([
    L.Input((8, 8, 3)), L.Conv2D(12, 3, padding="same", name="stem"), inner,
    L.GlobalAveragePooling2D(), L.Dense(2, name="scores"),
]))

# A sequence of features, with an unknown layer at one point
x = series = L.Input((20, 4))
x = L.Conv1D(16, 3, name="early")(x)
x = L.LayerNormalization(name="unknown")(x)
x = L.Conv1D(16, 3, name="later")(x)
x = L.Dense(8, activation="softmax", name="attention")(x)
x = L.SeparableConv1D(8, 3, name="s1")(L.AveragePooling1D(2)(x))
report["partly"] = exact(keras.Model(series, L.Dense(2, name="scores")(L.Flatten()(x))))
print(json.dumps(report))
"""

STAGES = """
model = saved(residual(), "residual")
notes = []
done = PruneKeras(channels=0.5).run(model, context("half", notes))
report["half"] = {
    "notes": notes, "inputs": [s.name for s in done.inputs], "outputs": [s.name for s in done.outputs],
    "layout": done.inputs[0].layout,
}
again = PruneKeras(channels=0.5).run(model, context("again"))
report["same_bytes"] = again.path.read_bytes() == done.path.read_bytes()
one = PruneKeras(channels=0.5, round_to=2, keep=["two_*"], layers={"one_a": 0.75}).run(model, context("one"))
small = keras.saving.load_model(one.path)
counted = ("stem", "one_a", "one_b", "two_a", "two_b")
report["by_layer"] = {name: small.get_layer(name).filters for name in counted}
report["pattern"] = refused(PruneKeras(channels=0.5, keep=["two_q"]), model, "r1")
report["conflict"] = refused(PruneKeras(channels=0.5, layers={"two_b": 0.5, "two_s": 0.25}), model, "r2")
report["nothing"] = refused(PruneKeras(channels=0.01), model, "r3")
x = image = L.Input((8, 8, 3))
x = L.GlobalAveragePooling2D()(L.LayerNormalization(name="strange")(L.Conv2D(16, 3, name="only")(x)))
frozen = saved(keras.Model(image, L.Dense(2, name="scores")(x)), "frozen")
report["unknown"] = refused(PruneKeras(channels=0.5), frozen, "r4")

def zeros(path):
    network = keras.saving.load_model(path)
    return {
        kernel.path: float(np.mean(kernel.values == 0))
        for kernel in keras_sparsity.kernels(network, "toy")
    }, network

notes = []
sparse = PruneKeras(weights=0.75, keep=["stem"], layers={"classes": 0.5}).run(model, context("sparse", notes))
report["sparse"] = {"zeros": zeros(sparse.path)[0], "kept": keras_archive.kept_in(sparse.path).sparse,
                    "notes": notes}
tiny = saved(keras.Sequential([L.Input((2,)), L.Dense(64, name="wide"), L.Dense(1, name="one")]), "tiny")
report["emptied"] = refused(PruneKeras(weights=0.999), tiny, "r5")
notes = []
n_m = PruneKeras(n_m=(2, 4)).run(model, context("n_m", notes))
found, network = zeros(n_m.path)
kernel = np.asarray(network.get_layer("two_b").kernel)
per_block = np.count_nonzero(kernel.reshape(3, 3, 4, 4, 16), axis=3)
report["n_m"] = {"zeros": found, "notes": notes, "per_block": np.unique(per_block).tolist()}
clustered = ClusterKeras(clusters=8).run(sparse, context("clustered"))
found, network = zeros(clustered.path)
report["clustered"] = {"zeros": found, "different": {
    k.path: len(np.unique(k.values)) for k in keras_sparsity.kernels(network, "toy")}}
report["depthwise_only"] = refused(
    PruneKeras(weights=0.5), saved(keras.Sequential([L.Input((8, 8, 3)), L.DepthwiseConv2D(3)]), "dw"), "r6"
)

digits = Model(format="keras", path=Path(sys.argv[2]))
judged = list(Digits(part="evaluation").samples())
images = np.stack([sample.inputs[0] for sample in judged]).astype(np.float32) / 16
labels = np.array([sample.label for sample in judged])
feed = Feed(Digits(part="calibration"), Preprocessing(scale=1 / 16))
for weighed in ("weights", "outputs"):
    half = PruneKeras(channels=0.25, importance=weighed).run(
        digits, context(weighed)._replace(calibration=feed)
    )
    found = np.argmax(keras.saving.load_model(half.path)(images), axis=1)
    report["by_" + weighed] = float(np.mean(found == labels))

# Every channel twice: eight can be removed without loss.
x = image = L.Input((8, 8, 1))
x = L.Conv2D(4, 3, name="reader")(L.Conv2D(16, 3, activation="relu", name="twins")(x))
twins = keras.Model(image, L.Dense(3, name="scores")(L.Flatten()(x)))
rough(twins)
kernel, bias = twins.get_layer("twins").get_weights()
kernel[..., 8:], bias[8:] = kernel[..., :8], bias[:8]
twins.get_layer("twins").set_weights([kernel, bias])
twins.save(root / "twins.keras")
done = PruneKeras(channels=0.5).run(
    Model(format="keras", path=root / "twins.keras"), context("twins")._replace(calibration=feed)
)
before, after = np.asarray(twins(images)), np.asarray(keras.saving.load_model(done.path)(images))
report["twins"] = float(np.abs(before - after).max() / np.abs(before).max())
print(json.dumps(report))
"""


def python(script: str, *arguments: object) -> Any:
    run = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        env={
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return python(EXACT, tmp_path_factory.mktemp("cut"))


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return python(STAGES, tmp_path_factory.mktemp("staged"), MODEL)


TOYS = ["residual", "side_by_side", "bound_parts", "excite", "nested", "partly"]


@pytest.mark.parametrize("name", TOYS)
def test_smaller_model_is_the_larger_one_without_the_channels(cut: Any, name: str) -> None:
    assert cut[name]["error"] < 1e-5
    assert cut[name]["macs"][1] < cut[name]["macs"][0]
    assert cut[name]["parameters"][1] < cut[name]["parameters"][0]


def test_tied_layers_lose_the_same_channels(cut: Any) -> None:
    assert cut["residual"]["kept"] == {
        "stem+one_b": [8, 4],
        "one_a": [8, 4],
        "two_a": [16, 8],
        "two_b+two_s": [16, 8],
        "classes": [5, 5],
    }
    assert cut["residual"]["sizes"]["two_a"] == [[3, 3, 4, 8]]
    assert cut["residual"]["sizes"]["classes"] == [[8, 5], [5]]
    # By hand: 64 positions, then 16
    old = 64 * (27 * 8 + 2 * 72 * 8) + 16 * (72 * 16 + 144 * 16 + 8 * 16) + 16 * 5
    new = 64 * (27 * 4 + 2 * 36 * 4) + 16 * (36 * 8 + 72 * 8 + 4 * 8) + 8 * 5
    assert cut["residual"]["macs"] == [old, new]


def test_concatenated_and_flattened_channels_are_found_again(cut: Any) -> None:
    found = cut["side_by_side"]
    assert found["kept"]["a"] == [8, 4]
    assert found["kept"]["b"] == [16, 8]
    assert found["sizes"]["deep"][0] == [3, 3, 12, 2]
    assert found["sizes"]["c"][:2] == [[3, 3, 24, 1], [1, 1, 24, found["kept"]["c"][1]]]
    assert found["sizes"]["hidden"][0] == [16 * found["kept"]["c"][1], 8]
    assert found["frozen"] == {"scores": "the model's output"}


def test_parts_bound_to_several_layers_are_counted_for_each(cut: Any) -> None:
    assert cut["bound_parts"]["kept"] == {"a+c": [8, 4], "b+c": [16, 8], "last": [2, 2]}
    assert cut["bound_parts"]["sizes"]["c"] == [[1, 1, 8, 12], [12]]


def test_a_channel_that_an_unknown_layer_touches_stays(cut: Any) -> None:
    found = cut["partly"]
    assert found["frozen"]["early"] == "LayerNormalization 'unknown'"
    assert found["frozen"]["attention"] == "the activation of Dense 'attention'"
    assert found["kept"]["early"] == [16, 16]
    assert found["kept"]["later"] == [16, 8]
    assert found["kept"]["s1"] == [8, 4]


def test_models_inside_models_and_layers_used_twice(cut: Any) -> None:
    # The shared layer is applied to the stem's output, and then to its own output.
    assert cut["nested"]["kept"] == {"stem+inner/shared": [12, 8], "scores": [2, 2]}
    assert cut["nested"]["sizes"]["inner/shared"] == [[3, 3, 8, 8], [8]]


def test_stage_tells_what_it_removed(staged: Any) -> None:
    half = staged["half"]
    assert half["inputs"] == ["image"]
    assert half["outputs"] == ["classes"]
    assert half["layout"] == "NHWC"
    assert any(note.startswith("MACs ") and "parameters" in note for note in half["notes"])
    assert any("two_b+two_s 8 of 16" in note for note in half["notes"])
    assert staged["same_bytes"]


def test_readers_make_up_for_what_is_gone(staged: Any) -> None:
    assert staged["by_weights"] < 0.8
    assert staged["by_outputs"] > 0.9
    assert staged["twins"] < 0.01


def test_layers_have_shares_of_their_own(staged: Any) -> None:
    assert staged["by_layer"] == {"stem": 4, "one_a": 2, "one_b": 4, "two_a": 16, "two_b": 16}


def test_what_cannot_be_pruned_is_refused_by_name(staged: Any) -> None:
    assert "keep: no layer is called 'two_q'" in staged["pattern"]
    assert "such as two_s" in staged["pattern"]
    assert "two_b" in staged["conflict"]
    assert "different shares" in staged["conflict"]
    assert "no channel of residual.keras can be removed" in staged["nothing"]
    assert "only reaches LayerNormalization 'strange'" in staged["unknown"]
    assert "no convolution or dense layer" in staged["depthwise_only"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"channels": 1.0}, "1 is not a fraction from 0 to below 1"),
        ({"weights": 1.0}, "1 is not a fraction"),
        ({"weights": 0.5, "layers": {"dense": 1.0}}, "dense: 1"),
        ({"channels": 0}, "0 removes nothing"),
        ({"n_m": (4, 4)}, "0 < n < m"),
        ({}, "set exactly one of"),
        ({"channels": 0.5, "weights": 0.5}, "set exactly one of"),
    ],
)
def test_shares_that_make_no_sense(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        PruneKeras(**options)


def test_one_cluster_makes_no_sense() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        ClusterKeras(clusters=1)


def test_smallest_weights_become_zero(staged: Any) -> None:
    found = staged["sparse"]
    assert found["zeros"].pop("stem") == 0
    assert found["zeros"].pop("classes") == 0.5
    assert all(share == pytest.approx(0.75, abs=0.01) for share in found["zeros"].values())
    assert set(found["kept"]) == {f"{name}#0" for name in [*found["zeros"], "classes"]}
    assert any("the compressed download shrinks" in note for note in found["notes"])


def test_a_layer_is_never_emptied(staged: Any) -> None:
    assert "would remove all 128 weights of layer 'wide'" in staged["emptied"]


def test_two_of_four_stay_along_the_input_channels(staged: Any) -> None:
    found = staged["n_m"]
    assert found["per_block"] == [2]
    assert found["zeros"].pop("stem") == 0
    assert set(found["zeros"].values()) == {0.5}
    assert "left dense, because m does not divide their input channels: stem" in found["notes"]


def test_clusters_share_values_and_keep_zeros(staged: Any) -> None:
    found = staged["clustered"]
    assert max(found["different"].values()) <= 8
    assert found["different"]["two_b"] == 8
    assert found["zeros"] == staged["sparse"]["zeros"] | {"stem": 0, "classes": 0.5}
