"""SavedModel folders whose graph reads or writes files or calls Python, or whose layers hide code."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hostile.case import SECRET, Case

SCRIPT = r"""
import json, os, sys, warnings
warnings.simplefilter("ignore")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf, tf_keras
from tf_keras.protobuf import saved_metadata_pb2
MARK, SECRET = sys.argv[1:]
raw = tf.raw_ops

def length(text):
    return tf.cast(tf.strings.length(text), tf.float32)

def after(operation, x):
    with tf.control_dependencies([operation]):
        return tf.identity(x)

def written(x):
    return after(tf.io.write_file(MARK + "/written", "by a graph"), x)

def looped(x):
    return tf.while_loop(lambda i, v: i < 1, lambda i, v: (i + 1, written(v)), (0, x))[1]

@tf.function
def inner(x):
    return written(x)

def checkpoint(x):
    save = raw.SaveV2(prefix=MARK + "/checkpoint", tensor_names=["x"], shape_and_slices=[""], tensors=[x])
    return after(save, x)

def summary(x):
    writer = raw.SummaryWriter(shared_name="w", container="")
    create = raw.CreateSummaryFileWriter(
        writer=writer, logdir=MARK, max_queue=1, flush_millis=1, filename_suffix="s")
    return after(create, x)

graphs = {
    "write": written,
    "read": lambda x: x + length(tf.io.read_file(SECRET)),
    "match": lambda x: x + length(tf.strings.reduce_join(tf.io.matching_files("/*"))),
    "python": lambda x: tf.reshape(tf.py_function(lambda v: v * 2, [x], tf.float32), [1, 4]),
    "numpy": lambda x: tf.reshape(tf.numpy_function(lambda v: v * 2, [x], tf.float32), [1, 4]),
    "print": lambda x: after(tf.print("x", output_stream="file://" + MARK + "/printed"), x),
    "save": checkpoint,
    "restore": lambda x: x + tf.reduce_mean(raw.RestoreV2(
        prefix=SECRET, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32])[0]),
    "cond": lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: written(x), lambda: x),
    "while": looped,
    "call": lambda x: inner(x),
    "summary": summary,
    "vocabulary": lambda x: x + tf.cast(tf.random.fixed_unigram_candidate_sampler(
        [[1]], 1, 1, False, 9, vocab_file=SECRET)[0][0], tf.float32),
    "dataset": lambda x: x + length(
        tf.data.TextLineDataset(SECRET).take(1).reduce("", lambda a, b: b)),
}
def signature(function):
    spec = tf.TensorSpec([1, 4], tf.float32, name="image")
    return tf.function(lambda x: {"y": tf.identity(function(x)) * 2}, input_signature=[spec])
for name, function in graphs.items():
    module = tf.Module(); module.f = signature(function)
    tf.saved_model.save(module, "graph-" + name, signatures={"serving_default": module.f})

class Table(tf.Module):
    def __init__(self):
        file = tf.lookup.TextFileInitializer(
            "words.txt", tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER)
        self.table = tf.lookup.StaticHashTable(file, -1)
    @tf.function(input_signature=[tf.TensorSpec([1, 4], tf.float32, name="image")])
    def f(self, x):
        return {"y": x + tf.cast(self.table.lookup(tf.constant(["a"])), tf.float32)}
open("words.txt", "w").write("a\nb\n")
module = Table(); tf.saved_model.save(module, "table", signatures={"serving_default": module.f})

# TensorFlow 1: an operation that runs while the model is loaded.
v1 = tf.compat.v1
with tf.Graph().as_default(), v1.Session() as session:
    x = v1.placeholder(tf.float32, [1, 4], name="image"); w = v1.get_variable("w", initializer=2.0)
    main = tf.io.write_file(MARK + "/main", "while loading"); session.run(v1.global_variables_initializer())
    builder = v1.saved_model.Builder("main-op")
    signature = v1.saved_model.predict_signature_def({"image": x}, {"y": x * w})
    builder.add_meta_graph_and_variables(
        session, ["serve"], {"serving_default": signature}, main_op=tf.group(main))
    builder.save()

def payload(v):
    __import__("os").system("touch " + repr(MARK + "/lambda")); return v
def pure(v):
    return v
x = tf_keras.Input((4,), name="image")
y = tf_keras.layers.Lambda(pure, name="lam")(tf_keras.layers.Dense(3, name="d")(x))
tf_keras.Model(x, y).save("lambda-plain", save_format="tf")
code = tf_keras.layers.Lambda(payload, name="lam").get_config()["function"]

def metadata(target, edit):
    import shutil
    shutil.copytree("lambda-plain", target)
    stored = saved_metadata_pb2.SavedMetadata()
    stored.ParseFromString(open(target + "/keras_metadata.pb", "rb").read())
    for node in stored.nodes:
        content = json.loads(node.metadata)
        if node.node_path == "root":
            # A root that looks harmless, as it is what most readers look at.
            def walk(value):
                if isinstance(value, dict):
                    if value.get("class_name") == "Lambda":
                        value["class_name"] = "Activation"
                        value["config"] = {"name": "lam", "trainable": True, "dtype": "float32",
                                           "activation": "linear"}
                    for inner in value.values(): walk(inner)
                elif isinstance(value, list):
                    for inner in value: walk(inner)
            walk(content); node.metadata = json.dumps(content)
        elif content.get("class_name") == "Lambda":
            content["config"]["function"] = code
            node.metadata = edit(content)
    encoded = stored.SerializeToString()
    open(target + "/keras_metadata.pb", "wb").write(encoded)

def inside_wrapper(content):
    layer = {"class_name": "Lambda", "config": content["config"]}
    content["class_name"] = "TimeDistributed"
    content["config"] = {"name": "lam", "layer": layer, "trainable": True, "dtype": "float32"}
    return json.dumps(content)

metadata("lambda-hidden", json.dumps)
metadata("lambda-escaped", lambda c: json.dumps(c).replace('"Lambda"', '"\\u004cambda"'))
metadata("lambda-wrapped", inside_wrapper)
metadata("lambda-spaced", lambda c: json.dumps(c, indent=3).replace('": "Lambda"', '" :\n"Lambda"'))
def operator(content):
    content["class_name"] = "TFOpLambda"
    content["config"] = {"name": "lam", "dtype": "float32", "function": "io.gfile.makedirs"}
    return json.dumps(content)
metadata("lambda-operator", operator)

def small(name):
    module = tf.Module(); module.w = tf.Variable([[2.0, 1, 1, 1]])
    module.f = tf.function(lambda x: {"y": x * module.w},
                           input_signature=[tf.TensorSpec([1, 4], tf.float32, name="image")])
    tf.saved_model.save(module, name, signatures={"serving_default": module.f})
small("harmless")
from tensorflow.core.protobuf import saved_model_pb2
def edited(name, edit):
    import shutil
    shutil.copytree("harmless", name)
    model = saved_model_pb2.SavedModel(); path = name + "/saved_model.pb"
    model.ParseFromString(open(path, "rb").read()); edit(model.meta_graphs[0])
    open(path, "wb").write(model.SerializeToString())
def signature_of_saver(graph):
    # The signature returns what the saver writes: a run of the model is a write of a file.
    output = next(iter(graph.signature_def["serving_default"].outputs.values()))
    output.name = graph.saver_def.save_tensor_name
edited("saver-as-signature", signature_of_saver)
def asset(graph):
    graph.asset_file_def.add(filename="../../../../etc/hostname").tensor_info.name = "a:0"
edited("asset-outside", asset)
"""


def build(folder: Path, mark: Path) -> Iterator[Case]:
    """Build the folders with TensorFlow in a process of its own."""
    (folder / "make.py").write_text(SCRIPT)
    command = [sys.executable, "make.py", str(mark), str(SECRET)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    words = {
        "write": "WriteFile",
        "read": "ReadFile",
        "match": "MatchingFiles",
        "python": "PyFunc",
        "numpy": "PyFunc",
        "print": "PrintV2",
        "save": "SaveV2",
        "restore": "RestoreV2",
        "cond": "WriteFile",
        "while": "WriteFile",
        "call": "WriteFile",
        "summary": "SummaryWriter",
        "vocabulary": "FixedUnigramCandidateSampler",
        "dataset": "Dataset",
    }
    for name, word in words.items():
        yield Case(folder / f"graph-{name}", word)
    yield Case(folder / "table", "InitializeTableFromTextFile")
    yield Case(folder / "main-op", "WriteFile")
    yield Case(folder / "saver-as-signature", "outside the saver")
    yield Case(folder / "asset-outside", "../../../../etc/hostname")
    for name in ("hidden", "escaped", "wrapped", "spaced", "operator"):
        yield Case(folder / f"lambda-{name}", "only its graph is used", refused=False)
    shutil.copytree(folder / "harmless", folder / "linked")
    (folder / "linked" / "assets").rename(folder / "linked" / "old-assets")
    (folder / "linked" / "assets").symlink_to(SECRET.parent)
    yield Case(folder / "linked", "outside the folder", allowed_by_trust=False)
