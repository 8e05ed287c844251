"""Real and malicious model files. No framework is imported here: the real files are written by two short
scripts in separate processes."""

import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import UsageError
from edgeopt.formats import source
from edgeopt.formats.keras.files import hdf5
from edgeopt.formats.known import by_suffix
from edgeopt.formats.source import check_weights, inspect, inspecting, is_weights
from edgeopt.formats.untrusted import torch_pickles
from edgeopt.formats.wire import bounded
from edgeopt.plugin import format as file_heads

DATA = os.environ.get("EDGEOPT_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="EDGEOPT_DATA is not set: no real models")

KERAS_SCRIPT = """
import keras, tf_keras, tensorflow as tf
def small(k):
    return k.Sequential([k.layers.Input((8, 8, 3), name="image"), k.layers.Conv2D(4, 3),
                         k.layers.GlobalAveragePooling2D(), k.layers.Dense(2)])
model = small(keras)
model.save("small.keras"); model.save("small.h5"); model.save_weights("small.weights.h5")
model.export("exported", verbose=False)
a = keras.Input((8, 8, 3), name="a"); b = keras.Input((5,), name="b", batch_size=1)
joined = keras.layers.concatenate([keras.layers.Flatten()(a), b])
keras.Model([b, a], keras.layers.Dense(2)(joined)).save("two.keras")
doubling = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2, name="twice")])
doubling.save("lambda.keras"); doubling.save("lambda.h5")
@keras.saving.register_keras_serializable(package="mine")
class Own(keras.layers.Layer):
    def call(self, x):
        return x
keras.Sequential([keras.Input((4,)), Own(name="special")]).save("own.keras")
old = small(tf_keras)
old.save("old.keras"); old.save("old", save_format="tf")
class Subclassed(tf_keras.Model):
    def __init__(self):
        super().__init__(); self.dense = tf_keras.layers.Dense(2)
    def call(self, x):
        return self.dense(x)
model = Subclassed(); model(tf.zeros((1, 4))); model.save("subclassed", save_format="tf")
tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Lambda(lambda x: x * 2)]).save(
    "lambda", save_format="tf")
"""

TORCH_SCRIPT = """
import json, torch, torch._weights_only_unpickler as unpickler
from safetensors.torch import save_file
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__(); self.conv = torch.nn.Conv2d(3, 4, 3); self.fc = torch.nn.Linear(4, 2)
    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))
net, x = Net().eval(), torch.zeros(2, 3, 8, 8)
torch.export.save(torch.export.export(net, (x,)), "net.pt2")
free = ({0: torch.export.Dim("batch", min=1, max=64)},)
torch.export.save(torch.export.export(net, (x,), dynamic_shapes=free), "free.pt2")
traced = torch.jit.trace(net, x)
traced.save("script.pt"); torch.jit.freeze(traced)._save_for_lite_interpreter("lite.ptl")
weights = net.state_dict()
torch.save({"state_dict": weights, "epoch": 3}, "weights.pt"); save_file(weights, "weights.safetensors")
torch.save(weights, "legacy.th", _use_new_zipfile_serialization=False)
torch.save(net, "whole.pt"); torch.save(net, "whole.th", _use_new_zipfile_serialization=False)
torch.onnx.export(net, (x,), "net.onnx", dynamo=True, external_data=False, verbose=False)
json.dump(sorted(unpickler._get_allowed_globals()), open("allowed.json", "w"))
"""


def _made_by(script: str, folder: Path) -> Path:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _made_by(KERAS_SCRIPT, tmp_path_factory.mktemp("keras"))


@pytest.fixture(scope="module")
def torch_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _made_by(TORCH_SCRIPT, tmp_path_factory.mktemp("torch"))


def _zip(path: Path, members: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _keras(path: Path, config: Any) -> Path:
    text = config if isinstance(config, str) else json.dumps(config)
    return _zip(
        path, {"config.json": text, "metadata.json": '{"keras_version": "3.15.1"}', "model.weights.h5": "x"}
    )


def _layer(kind: str, module: str | None = "keras.layers", **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": kind, "config": config, "registered_name": None}


def _sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "net", "layers": list(layers)}}


def _field(number: int, value: int | bytes | str) -> bytes:
    """One protobuf field on the wire; values under 16384."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def _refusal(path: Path, *, trust: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        inspect(path, trust=trust)
    assert caught.value.exit_code == 2
    assert caught.value.fix
    assert path.name in str(caught.value)
    return str(caught.value)


# Real files


@needs_data
@pytest.mark.parametrize(
    ("name", "shape", "layout", "layers"),
    [
        ("kws_ref_model", (None, 49, 10, 1), "NHWC", {"Conv2D": 5, "DepthwiseConv2D": 4}),
        ("resnet8.h5", (None, 32, 32, 3), "NHWC", {"Conv2D": 9, "Add": 3}),
        ("vww_mobilenetv1.h5", (None, 96, 96, 3), "NHWC", {"Conv2D": 14, "DepthwiseConv2D": 13}),
        ("ad_autoencoder.h5", (None, 640), None, {"Dense": 10}),
    ],
)
def test_real_keras_models(
    name: str, shape: tuple[int | None, ...], layout: str | None, layers: dict[str, int]
) -> None:
    found = inspect(Path(str(DATA), "mlperf-tiny", name))
    assert (found.model.format, found.framework) == ("tf_keras", "keras")
    (spec,) = found.model.inputs
    assert (spec.name, spec.shape, spec.dtype, spec.layout) == ("input_1", shape, "float32", layout)
    assert layers.items() <= found.layers.items()


@needs_data
def test_real_tflite_and_checkpoint() -> None:
    assert inspect(Path(str(DATA), "mlperf-tiny/kws_reference_int8.tflite")).model.format == "tflite"
    checkpoint = Path(str(DATA), "resnet-cifar10/resnet20.th")
    assert is_weights(checkpoint)
    assert check_weights(checkpoint) == ()
    assert "factory" in _refusal(checkpoint)


def test_files_of_keras(keras_files: Path) -> None:
    for name, format in {
        "small.keras": "keras",
        "small.h5": "keras",
        "old.keras": "tf_keras",
        "old": "tf_keras",
        "exported": "saved_model",
    }.items():
        found = inspect(keras_files / name)
        (spec,) = found.model.inputs
        assert (found.model.format, found.framework) == (format, "keras"), name
        assert (spec.name, spec.shape, spec.layout) == ("image", (None, 8, 8, 3), "NHWC"), name
        if format != "saved_model":
            assert found.layers == {"Conv2D": 1, "GlobalAveragePooling2D": 1, "Dense": 1}

    two = inspect(keras_files / "two.keras").model.inputs
    assert [(spec.name, spec.shape, spec.layout) for spec in two] == [
        ("b", (1, 5), None),
        ("a", (None, 8, 8, 3), "NHWC"),
    ]
    subclassed = inspect(keras_files / "subclassed").model
    assert (subclassed.format, subclassed.inputs[0].shape) == ("saved_model", (None, 4))
    assert subclassed.outputs[0].shape == (None, 2)
    assert "weights only" in _refusal(keras_files / "small.weights.h5")


def test_lambda_layers_of_keras(keras_files: Path) -> None:
    for name in ("lambda.keras", "lambda.h5"):
        message = _refusal(keras_files / name)
        assert "'twice' (Lambda) runs code from the file" in message
        assert "model.trust: true" in message
        trusted = inspect(keras_files / name, trust=True)
        assert trusted.model.format == "keras"
        assert any("Lambda" in note for note in trusted.notes)
    # A SavedModel contains its graph next to the configuration, so no code from it needs to run.
    assert inspect(keras_files / "lambda").model.format == "saved_model"
    assert inspect(keras_files / "lambda", trust=True).model.format == "tf_keras"


def test_custom_classes_are_named(keras_files: Path, tmp_path: Path) -> None:
    message = _refusal(keras_files / "own.keras")
    assert "'special' (mine>Own)" in message
    assert "model.export" in message
    importable = _keras(tmp_path / "m.keras", _sequential(_layer("Swish", "their.layers", name="act")))
    assert "'their.layers'" in _refusal(importable)
    assert "their.layers" in inspect(importable, trust=True).notes[0]


def test_files_of_torch(torch_files: Path) -> None:
    fixed = inspect(torch_files / "net.pt2")
    assert (fixed.model.format, fixed.framework) == ("exported_program", "torch")
    (spec,) = fixed.model.inputs
    assert (spec.name, spec.shape, spec.dtype, spec.layout) == ("x", (2, 3, 8, 8), "float32", "NCHW")
    assert fixed.model.outputs[0].shape == (2, 2)
    assert fixed.layers["conv2d"] == 1
    assert inspect(torch_files / "free.pt2").model.inputs[0].shape == (None, 3, 8, 8)

    script = inspect(torch_files / "script.pt")
    assert (script.model.format, script.model.inputs) == ("torchscript_module", ())
    assert "model.inputs" in script.notes[0]
    assert inspect(torch_files / "lite.ptl").model.format == "torchscript"

    graph = inspect(torch_files / "net.onnx").model
    assert (graph.format, graph.inputs[0].name, graph.inputs[0].shape) == ("onnx", "x", (2, 3, 8, 8))
    assert graph.outputs[0].shape == (2, 2)


def test_weights_of_torch(torch_files: Path) -> None:
    for name in ("weights.pt", "legacy.th", "weights.safetensors"):
        assert is_weights(torch_files / name)
        assert check_weights(torch_files / name) == ()
        assert f"weights: {name}" in _refusal(torch_files / name)
    for name in ("whole.pt", "whole.th"):
        assert "state_dict()" in _refusal(torch_files / name)
        with pytest.raises(UsageError, match=r"whole pickled module.*__main__\.Net") as caught:
            check_weights(torch_files / name)
        assert f"weights: {name}, trust: true" in caught.value.fix
        (note,) = check_weights(torch_files / name, trust=True)
        assert "__main__.Net" in note and "model.trust allows it" in note
    with pytest.raises(UsageError, match="is not a weights file: it is a torch exported program"):
        check_weights(torch_files / "net.pt2")


def test_allowed_globals_are_those_of_torch(torch_files: Path) -> None:
    allowed = json.loads((torch_files / "allowed.json").read_text())
    assert set(allowed) == torch_pickles.ALLOWED_GLOBALS


# Bad files


def test_missing_empty_and_wrong_kind_of_path(tmp_path: Path) -> None:
    (tmp_path / "model.keras").touch()
    assert "did you mean 'model.keras'?" in _refusal(tmp_path / "modle.keras")
    assert "is empty" in _refusal(tmp_path / "model.keras")
    assert "saved_model.pb" in _refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "neither a file nor a folder" in _refusal(tmp_path / "pipe.onnx")


@pytest.mark.parametrize("suffix", sorted(by_suffix()))
def test_content_that_is_not_what_the_name_says(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"<!DOCTYPE html><title>404</title>" + bytes(64))
    message = _refusal(path)
    assert "is not a" in message
    assert "web page" in message
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in _refusal(path)


def test_a_model_under_the_name_of_another(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(struct.pack("<I", 28) + b"TFL3" + bytes(56))
    assert "its content is a TFLite file" in _refusal(path)
    assert inspect(path.rename(tmp_path / "model.tflite")).model.format == "tflite"
    program = tmp_path / "model.pte"
    program.write_bytes(struct.pack("<I", 60) + b"ET12" + bytes(56))
    assert inspect(program).model.format == "executorch"


def test_keras_archive_with_a_part_missing(tmp_path: Path) -> None:
    path = _zip(tmp_path / "m.keras", {"config.json": "{}", "metadata.json": "{}"})
    assert "model.weights.h5 not found" in _refusal(path)


@pytest.mark.parametrize(
    "config",
    ["", "{", "[]", "3", '{"class_name": "Sequential"', '{"config": {}}', "[" * 100_000],
    ids=["empty", "cut", "list", "number", "half", "nothing", "deep"],
)
def test_damaged_keras_configuration(tmp_path: Path, config: str) -> None:
    assert "is damaged" in _refusal(_keras(tmp_path / "m.keras", config))


@pytest.mark.parametrize("cut", [3, 40, 200, -60])
def test_cut_off_archive(tmp_path: Path, cut: int) -> None:
    whole = _keras(tmp_path / "m.keras", _sequential(_layer("Dense", units=2))).read_bytes()
    path = tmp_path / "cut.keras"
    path.write_bytes(whole[:cut])
    assert _refusal(path)


def test_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "JSON_LIMIT", 1 << 20)
    path = _keras(tmp_path / "bomb.keras", " " * (8 << 20) + "{}")
    assert path.stat().st_size < 20_000
    assert "larger than the 1 MiB allowed" in _refusal(path)
    monkeypatch.setattr(file_heads, "MEMBERS", 10)
    crowded = _zip(tmp_path / "crowd.pt", {f"m/{n}": b"" for n in range(11)})
    assert "11 members" in _refusal(crowded)


def test_lambda_that_hides_in_a_nested_model_or_an_activation(tmp_path: Path) -> None:
    nested = _sequential(_sequential(_layer("Lambda", name="deep")))
    assert "'deep' (Lambda)" in _refusal(_keras(tmp_path / "nested.keras", nested))
    activation = {"class_name": "__lambda__", "config": {"code": "4wEA"}}
    hidden = _sequential(_layer("Dense", name="head", activation=activation))
    assert "__lambda__" in _refusal(_keras(tmp_path / "hidden.keras", hidden))


def test_inputs_without_an_input_layer_and_with_channels_first(tmp_path: Path) -> None:
    first = _layer("Conv2D", batch_input_shape=[None, 3, 8, 8], data_format="channels_first", dtype="float16")
    (spec,) = inspect(_keras(tmp_path / "first.keras", _sequential(first))).model.inputs
    assert (spec.shape, spec.dtype, spec.layout) == ((None, 3, 8, 8), "float16", "NCHW")
    untold = inspect(_keras(tmp_path / "untold.keras", _sequential(_layer("Dense", units=2))))
    assert untold.model.inputs == ()
    assert "model.inputs" in untold.notes[0]


def test_h5_that_points_into_another_file_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(_sequential(_layer("Dense", units=2)))
        file["weights"] = h5py.ExternalLink("/etc/passwd", "/x")
    assert "a link to the file" in _refusal(path)
    monkeypatch.setattr(hdf5, "SECONDS", 0.001)
    assert "takes longer than" in _refusal(path)
    monkeypatch.undo()
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(path.read_bytes()[:100])
    assert _refusal(damaged)


def _saved_model(folder: Path, *, identifier: str = "_generic", metadata: str = "") -> Path:
    shape = _field(2, _field(1, 1)) + _field(2, _field(1, 4))
    info = _field(1, "serving_default_x:0") + _field(2, 1) + _field(3, shape)
    signature = _field(1, _field(1, "x") + _field(2, info))
    root = _field(4, _field(1, identifier) + _field(3, metadata))
    meta = _field(5, _field(1, "serving_default") + _field(2, signature)) + _field(7, _field(1, root))
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(_field(1, 1) + _field(2, meta))
    return folder


def test_saved_model_with_and_without_a_keras_configuration(tmp_path: Path) -> None:
    plain = inspect(_saved_model(tmp_path / "plain")).model
    assert (plain.format, plain.inputs[0].name, plain.inputs[0].shape) == ("saved_model", "x", (1, 4))
    config = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {}}]}}
    keras = _saved_model(tmp_path / "keras", identifier="_tf_keras_sequential", metadata=json.dumps(config))
    assert inspect(keras).model.format == "tf_keras"
    config["config"] = {"layers": [{"class_name": "mine>Own", "config": {}}]}
    own = _saved_model(tmp_path / "own", identifier="_tf_keras_sequential", metadata=json.dumps(config))
    assert inspect(own).model.format == "saved_model"


def test_saved_model_that_is_cut_off_or_leads_outside(tmp_path: Path) -> None:
    folder = _saved_model(tmp_path / "model")
    graph = folder / "saved_model.pb"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-5])
    assert "is damaged" in _refusal(folder)
    graph.write_bytes(whole)
    (folder / "variables").symlink_to("/etc")
    assert "variables is a link to /etc" in _refusal(folder)
    (folder / "variables").unlink()
    (folder / "assets").symlink_to(folder / "saved_model.pb")
    assert inspect(folder).model.format == "saved_model"


def test_bytes_that_only_look_like_onnx(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content in (
        _field(1, 8),  # no graph
        _field(1, 8) + _field(7, b"") + _field(99, 1),  # a field that ONNX does not have
        _field(7, b""),  # no version
        _field(1, 8) + b"\x3a\xff\xff\xff\xff\x0f",  # a graph longer than the file
        b"\xff" * 64,
        b"hello world, this is no model at all",
    ):
        path.write_bytes(content)
        assert "is not an ONNX file" in _refusal(path)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch hacked",))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_that_run_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps({"weight": _Bomb()}, protocol=protocol)
    path = tmp_path / "weights.pth"
    if legacy:
        head = [
            pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        ]
        path.write_bytes(b"".join([*head, bomb, pickle.dumps([], protocol=2)]))
    else:
        _zip(path, {"m/data.pkl": bomb, "m/version": b"3"})
    with pytest.raises(UsageError, match=r"(posix|nt)\.system") as caught:
        check_weights(path)
    assert "model.trust: true" in caught.value.fix
    assert "can run code" in check_weights(path, trust=True)[0]
    assert not (tmp_path / "hacked").exists()


def test_names_that_hide_in_the_memo_are_refused_too(tmp_path: Path) -> None:
    # 'posix' and 'system' are stored first, and fetched from the memo after other strings are pushed.
    code = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x8c\x01a\x8c\x01bh\x00h\x01\x93\x8c\x02ls\x85R."
    path = _zip(tmp_path / "weights.pt", {"m/data.pkl": code})
    with pytest.raises(UsageError, match="could run code"):
        check_weights(path)


def test_a_protocol_that_torch_does_not_take_is_named(tmp_path: Path) -> None:
    harmless = pickle.dumps({"epoch": 3}, protocol=4)
    path = _zip(tmp_path / "weights.pt", {"m/data.pkl": harmless})
    with pytest.raises(UsageError, match="the pickle instruction FRAME"):
        check_weights(path)


def test_pickles_of_python_2_use_other_names(tmp_path: Path) -> None:
    path = _zip(
        tmp_path / "weights.pt", {"m/data.pkl": b"\x80\x02c__builtin__\nset\nq\x00]q\x01\x85q\x02Rq\x03."}
    )
    assert check_weights(path) == ()
    _zip(path, {"m/data.pkl": b"\x80\x02c__builtin__\neval\nq\x00X\x01\x00\x00\x001\x85R."})
    with pytest.raises(UsageError, match=r"builtins\.eval"):
        check_weights(path)


@pytest.mark.parametrize(
    "content",
    [b"\x80\x02}q\x00X\xff\xff\xff\x7f", b"\x80\x02}", b"\xfe\xfe", b""],
    ids=["long", "cut", "noise", "empty"],
)
def test_damaged_pickles(tmp_path: Path, content: bytes) -> None:
    path = _zip(tmp_path / "weights.pt", {"m/data.pkl": content})
    with pytest.raises(UsageError, match="is damaged"):
        check_weights(path)


def test_a_pickle_that_grows_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickles, "PICKLE_LIMIT", 1 << 20)
    text = bytes(4 << 20)
    stream = io.BytesIO()
    pickle.dump({"x": text.decode()}, stream, protocol=2)
    path = _zip(tmp_path / "weights.pt", {"m/data.pkl": stream.getvalue()})
    assert path.stat().st_size < 20_000
    with pytest.raises(UsageError, match="is damaged"):
        check_weights(path)


def test_a_bare_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UsageError, match="bare Python pickle"):
        check_weights(path)
    assert not is_weights(path)
    with pytest.raises(UsageError, match="is a folder"):
        check_weights(tmp_path)


def test_safetensors_with_a_tensor_outside_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"

    def write(end: int) -> None:
        header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, end]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))

    write(8)
    assert check_weights(path) == ()
    write(9)
    with pytest.raises(UsageError, match="tensor 'w' extends beyond the file"):
        check_weights(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{" + bytes(64))
    with pytest.raises(UsageError, match="is not a safetensors file"):
        check_weights(path)


def test_nothing_of_a_framework_is_imported(tmp_path: Path) -> None:
    _keras(tmp_path / "m.keras", _sequential(_layer("Dense", units=2)))
    code = (
        "import sys; from pathlib import Path\n"
        "from edgeopt.formats import source; from edgeopt.commands import plan, init\n"
        "source.inspect(Path('m.keras'))\n"
        "print([m for m in ('tensorflow', 'keras', 'tf_keras', 'torch', 'onnx', 'h5py') if m in sys.modules])"
    )
    home = str(Path(source.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": home},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_an_inspection_in_the_background_returns_and_raises_what_inspect_does(tmp_path: Path) -> None:
    """Two at once: what they share, such as the known formats, is the same for both."""
    path = tmp_path / "model.keras"
    shutil.copy(Path(__file__).parents[1] / "recipes/digits/digits.keras", path)
    (damaged := tmp_path / "damaged.keras").write_bytes(path.read_bytes()[:2000])

    waiting = [inspecting(path), inspecting(damaged), inspecting(path)]

    assert waiting[0]() == waiting[2]() == inspect(path)
    with pytest.raises(UsageError, match=re.escape(str(damaged))):
        waiting[1]()
