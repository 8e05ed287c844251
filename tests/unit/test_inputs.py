"""Several inputs: by name, each with its own preprocessing, in the layout of the source model."""

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.commands.plan import plan as make_plan
from edgeopt.errors import RecipeError, UsageError
from edgeopt.evaluation.datasets.csv import Csv
from edgeopt.evaluation.datasets.function import Function
from edgeopt.evaluation.datasets.npz import Npz
from edgeopt.evaluation.golden import Golden
from edgeopt.evaluation.samples import checked, collect, fingerprint
from edgeopt.model import InputPreprocessing, Model, Preprocessing, TensorSpec
from edgeopt.plugin import Dataset, Feed, Sample
from edgeopt.publish.contract import read_contract
from edgeopt.recipe.document import ModelPart
from edgeopt.recipe.resolve import load_recipe
from edgeopt.run.measuring.samples import Evaluation
from edgeopt.run.preflight import check_data, check_samples, find_leaks
from edgeopt.run.store import Store
from edgeopt.stages._training_data import TrainingData
from toy_run import toy_bundle

Write = Callable[..., Path]

PLANAR = TensorSpec(name="image", shape=(1, 3, 4, 4), layout="NCHW")
IMAGE = TensorSpec(name="serving_image", shape=(1, 4, 4, 3), layout="NHWC")
INT8_IMAGE = TensorSpec(
    name="image", shape=(1, 4, 4, 3), dtype="int8", layout="NHWC", scale=1 / 255, zero_point=-128
)
IDS = TensorSpec(name="ids", shape=(1, 5), dtype="int32")
MASK = TensorSpec(name="mask", shape=(1, 5), dtype="bool")
SOURCE = (PLANAR, IDS, MASK)
SCALED = Preprocessing(scale=1 / 255)


class Texts(Dataset):
    """Planar images of bytes, tokens and masks; ``order``: by these names, or in the model's order."""

    order: tuple[str, ...] = ()
    count: int = 12

    def samples(self) -> Iterator[Sample]:
        random = np.random.default_rng(1)
        for index in range(self.count):
            values = {
                "image": random.integers(0, 256, (3, 4, 4), np.uint8),
                "ids": random.integers(0, 30_000, 5),
                "mask": random.integers(0, 2, 5),
            }
            named = {name: values[name] for name in self.order}
            yield Sample(named or tuple(values.values()), index % 2)

    def digest(self) -> str:
        return f"texts {self.order}"


NAMED = Texts(order=("mask", "image", "ids"))


# preprocessing


def test_one_preprocessing_leaves_tokens_and_masks_as_they_are() -> None:
    prepared = InputPreprocessing(SCALED, SOURCE)
    assert prepared.of(0, IMAGE) == SCALED.model_copy(update={"layout": "NCHW"})
    assert prepared.of(1, IDS) == prepared.of(2, MASK) == Preprocessing()
    # An image that a file takes as integers is quantized, hence preprocessed.
    assert prepared.of(0, INT8_IMAGE).scale == SCALED.scale
    assert SCALED.of(0, INT8_IMAGE) == SCALED and SCALED.of(0, IDS) == Preprocessing()


@pytest.mark.parametrize("dataset", [Texts(), NAMED, Texts(order=("ids", "mask", "image"))])
@pytest.mark.parametrize("given", [SCALED, {"image": SCALED}], ids=["all", "by name"])
def test_every_input_gets_its_own(dataset: Texts, given: Preprocessing | dict[str, Preprocessing]) -> None:
    prepared = InputPreprocessing(given, SOURCE)
    raw = [np.stack(column) for column in zip(*(sample.inputs for sample in Texts().samples()), strict=True)]
    pixels = raw[0].astype(np.float32) * np.float32(1 / 255)
    (planar, ids, mask), labels = collect(dataset, prepared, SOURCE)
    assert np.array_equal(planar, pixels) and planar.dtype == np.float32
    assert np.array_equal(ids, raw[1]) and ids.dtype == np.int32
    assert np.array_equal(mask, raw[2].astype(bool)) and mask.dtype == np.bool_
    assert labels is not None and np.array_equal(np.asarray(labels), np.arange(12) % 2)
    # A file converted to another layout, whose inputs have other names, gets the same samples.
    converted = (IMAGE, IDS.model_copy(update={"name": "args_1"}), MASK)
    (image, ids, _), _ = collect(dataset, prepared, converted)
    assert np.array_equal(image, pixels.transpose(0, 2, 3, 1)) and np.array_equal(ids, raw[1])
    (stored, _, _), _ = collect(dataset, prepared, (INT8_IMAGE, IDS, MASK))
    assert np.array_equal(stored, (raw[0].transpose(0, 2, 3, 1).astype(int) - 128).astype(np.int8))
    # Stages read the same.
    fed = list(Feed(dataset, prepared).inputs(Model(format="x", path=Path(), inputs=converted)))
    for index, wanted in enumerate((image, ids, mask)):
        assert np.array_equal(np.concatenate([values[index] for values in fed]), wanted)
        assert fed[0][index].dtype == wanted.dtype
    rows = TrainingData.read(Feed(dataset, prepared), Model(format="x", path=Path(), inputs=converted))
    for values, wanted in zip(rows.batch(np.arange(12)), (image, ids, mask), strict=True):
        assert np.array_equal(values, wanted)


def test_a_preprocessing_by_name_is_applied_to_integers_too() -> None:
    prepared = InputPreprocessing({"ids": Preprocessing(mean=(-1,))}, SOURCE)
    (_, ids, _), _ = collect(NAMED, prepared, SOURCE)
    (_, plain, _), _ = collect(NAMED, InputPreprocessing({}, SOURCE), SOURCE)
    assert np.array_equal(ids, plain + 1) and ids.dtype == np.int32
    (fed, *_) = Feed(NAMED, prepared).inputs(Model(format="x", path=Path(), inputs=SOURCE))
    assert np.array_equal(fed[1], ids[:1]) and fed[1].dtype == np.int32
    halved = InputPreprocessing({"ids": Preprocessing(scale=0.5)}, SOURCE)
    with pytest.raises(UsageError, match="input 'ids' takes int32, but the sample has other values"):
        collect(NAMED, halved, SOURCE)


def test_a_mean_per_channel_does_not_fit_other_inputs_and_the_message_says_what_does() -> None:
    vector = TensorSpec(name="speed", shape=(1, 2))

    class Both(Dataset):
        def samples(self) -> Iterator[Sample]:
            yield Sample({"speed": np.zeros(2, np.float32), "image": np.zeros((3, 4, 4), np.uint8)})

        def digest(self) -> str:
            return "both"

    for_all = InputPreprocessing(Preprocessing(mean=(1, 2, 3)), (PLANAR, vector))
    with pytest.raises(UsageError, match="'mean' and 'std' do not match") as caught:
        collect(Both(), for_all, (PLANAR, vector))
    assert "'preprocess: {speed: {...}}'" in caught.value.fix
    collect(Both(), for_all._replace(given={"image": Preprocessing(mean=(1, 2, 3))}), (PLANAR, vector))


def test_the_default_layout_is_that_of_the_source_model() -> None:
    assert InputPreprocessing(Preprocessing(), SOURCE).of(0, IMAGE).layout == "NCHW"
    explicit = InputPreprocessing(Preprocessing(layout="NHWC"), SOURCE)
    assert explicit.of(0, IMAGE).layout == explicit.of(0, PLANAR).layout == "NHWC"
    assert InputPreprocessing({"image": Preprocessing(layout="NHWC")}, SOURCE).of(0, PLANAR).layout == "NHWC"


def test_keys_of_a_single_input_are_those_of_its_preprocessing(tmp_path: Path) -> None:
    """What stores hold stays valid."""
    one = (PLANAR,)
    assert InputPreprocessing(SCALED, one).key(one) == SCALED.model_dump(mode="json")
    raw = SCALED.model_copy(update={"layout": "NHWC"})
    assert InputPreprocessing(raw, one).key((IMAGE,)) == raw.model_dump(mode="json")
    # Before, this was not possible at all.
    assert InputPreprocessing(SCALED, one).key((IMAGE,)) != SCALED.model_dump(mode="json")
    evaluations = [
        Evaluation(Texts(), how, tmp_path).key(one, 8) for how in (SCALED, InputPreprocessing(SCALED, one))
    ]
    assert evaluations[0] == evaluations[1]


def test_keys_of_several_inputs_have_their_names_and_what_each_gets() -> None:
    keys = [
        InputPreprocessing(given, source).key(source)
        for given in (SCALED, {"image": SCALED}, {"image": SCALED, "ids": Preprocessing()}, {"ids": SCALED})
        for source in (SOURCE, (PLANAR, IDS.model_copy(update={"name": "tokens"}), MASK))
    ]
    assert keys[0] == keys[2] == keys[4]
    assert len({str(key) for key in keys}) == 4


# samples


def test_a_sample_may_be_given_by_name() -> None:
    a, b = np.zeros(1), np.ones(2)
    sample = Sample({"b": b, "a": a}, 3)
    assert sample.names == ("b", "a") and sample.inputs == (b, a) and sample.label == 3
    assert sample.in_order(("a", "b")) == (a, b)
    assert Sample((a, b)).in_order(("x", "y")) == (a, b)
    copy = pickle.loads(pickle.dumps(sample))
    assert isinstance(copy, Sample) and copy.names == ("b", "a")
    assert sample._replace(label=None).names == ("b", "a")


@pytest.mark.parametrize(
    ("inputs", "message", "fix"),
    [
        ({"id": 1, "mask": 1}, "has an input 'id', which the model does not take; did you mean 'ids'", "ids"),
        ({"ids": 1}, "has no input 'mask'; it has 'ids'", "the model takes 'ids', 'mask'"),
        ({}, "has 0 inputs, the model takes 2: 'ids', 'mask'", "by their names"),
        ((1, 2, 3), "has 3 inputs, the model takes 2", "in the model's order or by their names"),
    ],
)  # fmt: skip
def test_wrong_names_are_named(inputs: dict[str, int] | tuple[int, ...], message: str, fix: str) -> None:
    values = (
        {k: np.array(v) for k, v in inputs.items()}
        if isinstance(inputs, dict)
        else tuple(map(np.array, inputs))
    )
    with pytest.raises(UsageError) as caught:
        Sample(values).in_order(("ids", "mask"), "d.npz")
    assert caught.value.message.startswith("d.npz: ") and message in caught.value.message
    assert fix in caught.value.fix


class Changing(Dataset):
    second: tuple[str, ...]

    def samples(self) -> Iterator[Sample]:
        yield Sample({"a": np.zeros(2), "b": np.ones(3)})
        sizes = {"a": 2, "b": 3, "c": 2}
        yield Sample({name: np.full(sizes[name], 2.0) for name in self.second} or (np.zeros(2), np.ones(3)))

    def digest(self) -> str:
        return "changing"


def test_names_may_change_their_order_but_nothing_else() -> None:
    first, second = checked(Changing(second=("b", "a")))
    assert first.names == second.names == ("a", "b")
    assert [value.shape for value in second.inputs] == [(2,), (3,)]
    with pytest.raises(
        UsageError, match="sample 1 has inputs with 'c', 'b', the previous samples have 'a', 'b'"
    ):
        list(checked(Changing(second=("c", "b"))))
    with pytest.raises(UsageError, match="sample 1 has inputs with no names"):
        list(checked(Changing(second=())))


def test_a_bad_value_names_the_input() -> None:
    class Bad(Dataset):
        def samples(self) -> Iterator[Sample]:
            yield Sample({"a": np.zeros(2), "speed": np.array([np.nan])})

        def digest(self) -> str:
            return "bad"

    with pytest.raises(UsageError, match="sample 0: input 'speed' contains NaN"):
        list(checked(Bad()))


def test_golden_vectors_are_in_the_models_order(tmp_path: Path) -> None:
    model = Model(format="tflite", path=tmp_path / "m", inputs=(INT8_IMAGE, IDS, MASK))
    written = []
    for dataset in (Texts(), NAMED):
        golden = Golden(dataset, InputPreprocessing({"image": SCALED}, SOURCE), None, 12)
        golden.write(model, [np.zeros((12, 2), np.float32)], tmp_path / "g.npz")
        with np.load(tmp_path / "g.npz") as archive:
            written.append(dict(archive))
    one, other = written
    assert sorted(one) == ["input_0", "input_1", "input_2", "output_0", "raw_0", "raw_1", "raw_2"]
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert one["raw_0"].shape == (8, 3, 4, 4) and np.array_equal(one["raw_1"], one["input_1"])
    assert np.array_equal(one["input_0"], one["raw_0"].transpose(0, 2, 3, 1).astype(int) - 128)


def test_a_leak_is_found_whether_or_not_inputs_have_names(write_recipe: Write, tmp_path: Path) -> None:
    arrays = {"x": np.arange(40.0).reshape(10, 4), "z": np.arange(20).reshape(10, 2)}
    np.savez(tmp_path / "a.npz", **arrays)
    recipe = load_recipe(
        write_recipe(
            data="{evaluation: {uses: npz, with: {path: a.npz, label: null, inputs: {second: z, first: x}}}, "
            "calibration: {uses: npz, with: {path: a.npz, label: null, inputs: [x, z]}}}",
            metric="",
        )
    )
    hashes = check_samples(recipe, Store(tmp_path / "store"), ("first", "second"))
    with pytest.raises(UsageError, match=r"10 of the 10 evaluation samples are in data\.calibration"):
        find_leaks(recipe, hashes)
    assert fingerprint((np.zeros(1), np.ones(1))) != fingerprint((np.ones(1), np.zeros(1)))


# datasets


def test_npz_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", tokens=np.arange(6).reshape(3, 2), valid=np.ones((3, 2), bool), y=[0, 1, 1])
    by_name = Npz(path=tmp_path / "d.npz", inputs={"mask": "valid", "ids": "tokens"})
    samples = list(by_name.samples())
    assert [sample.label for sample in samples] == [0, 1, 1]
    ids, mask = samples[1].in_order(("ids", "mask"))
    assert ids.tolist() == [2, 3] and mask.tolist() == [True, True]
    again = Npz(path=tmp_path / "d.npz", inputs={"ids": "tokens", "mask": "valid"})
    listed = Npz(path=tmp_path / "d.npz", inputs=["tokens", "valid"])
    assert by_name.digest() == again.digest() != listed.digest()
    with pytest.raises(UsageError, match="no array 'token'"):
        list(Npz(path=tmp_path / "d.npz", inputs={"ids": "token"}).samples())
    for wrong, kind in (
        ({}, "too_short"),
        ([], "too_short"),
        ("tokens", "tuple_type"),
        ({"ids": 3}, "string_type"),
    ):
        with pytest.raises(ValidationError) as caught:
            Npz(path=tmp_path / "d.npz", inputs=wrong)
        assert [error["type"] for error in caught.value.errors()] == [kind]


def test_csv_by_name(tmp_path: Path) -> None:
    for name, value in (("a0", 0.0), ("a1", 1.0), ("b0", 2.0), ("b1", 3.0)):
        np.save(tmp_path / f"{name}.npy", np.full(2, value))
    (tmp_path / "t.csv").write_text("left,right,label\na0.npy,b0.npy,0\na1.npy,b1.npy,1\n")
    data = Csv(path=tmp_path / "t.csv", file={"b": "right", "a": "left"})
    assert [[float(v[0]) for v in s.in_order(("a", "b"))] for s in data.samples()] == [[0, 2], [1, 3]]
    assert data.digest() != Csv(path=tmp_path / "t.csv", file="left").digest()
    swapped = Csv(path=tmp_path / "t.csv", file={"b": "left", "a": "right"})
    assert swapped.digest() != data.digest()
    with pytest.raises(UsageError, match=r"t\.csv:1: no column 'middle'") as caught:
        list(Csv(path=tmp_path / "t.csv", file={"a": "middle"}).samples())
    assert "Set the option 'file'" in caught.value.fix
    (tmp_path / "t.csv").write_text("left,right,label\na0.npy,,0\n")
    with pytest.raises(UsageError, match=r"t\.csv:2: no file name"):
        list(data.samples())


CODE = """
import numpy as np
from edgeopt.plugin import Sample

X = {"ids": np.arange(6).reshape(3, 2), "mask": np.ones((3, 2), bool)}

def rows():
    return [{name: values[i] for name, values in X.items()} for i in range(3)]
def pairs():
    yield from ((row, i) for i, row in enumerate(rows()))
def unlabelled():
    return rows()
def samples():
    yield from (Sample(row, i) for i, row in enumerate(rows()))
def columns():
    return X, np.arange(3)
def columns_without_labels():
    return (X, None)
def loader():
    from torch.utils.data import DataLoader
    return DataLoader([(row, i) for i, row in enumerate(rows())], batch_size=2)
def pipeline():
    import tensorflow as tf
    return tf.data.Dataset.from_tensor_slices((X, np.arange(3))).batch(2)
def other():
    return [{"mask": row["mask"], "ids": row["ids"]} for row in rows()]
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Function]:
    (tmp_path / "named_data.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "named_data", raising=False)
    return lambda name: Function.model_validate(
        {"function": f"named_data:{name}"}, context={"roots": (tmp_path,)}
    )


@pytest.mark.parametrize(
    ("name", "labelled"),
    [
        ("pairs", True),
        ("unlabelled", False),
        ("samples", True),
        ("columns", True),
        ("columns_without_labels", False),
        pytest.param("loader", True, marks=pytest.mark.slow),
        pytest.param("pipeline", True, marks=pytest.mark.slow),
    ],
)
def test_functions_may_name_inputs(code: Callable[..., Function], name: str, labelled: bool) -> None:
    if name in ("loader", "pipeline"):
        pytest.importorskip({"loader": "torch", "pipeline": "tensorflow"}[name])
    samples = list(code(name).samples())
    assert [sample.in_order(("ids", "mask"))[0].tolist() for sample in samples] == [[0, 1], [2, 3], [4, 5]]
    assert all(set(sample.names) == {"ids", "mask"} for sample in samples)
    assert [sample.label for sample in samples] == ([0, 1, 2] if labelled else [None] * 3)


def test_the_digest_of_a_function_follows_names(code: Callable[..., Function]) -> None:
    assert code("unlabelled").digest() == code("unlabelled").digest()
    assert code("unlabelled").digest() != code("other").digest()


# recipes


def test_both_forms_of_preprocess(tmp_path: Path) -> None:
    def part(preprocess: object) -> ModelPart:
        return ModelPart.model_validate({"path": str(tmp_path), "preprocess": preprocess})

    assert part({"scale": "1/255"}).preprocess == SCALED
    assert part({"image": {"scale": "1/255"}, "ids": {}}).preprocess == {
        "image": SCALED,
        "ids": Preprocessing(),
    }
    # A mapping of mappings is by name, even if an input has the name of a setting.
    assert part({"scale": {"scale": 2}}).preprocess == {"scale": Preprocessing(scale=2)}
    assert part({}).preprocess == Preprocessing()


TWO = (
    "{{path: {model}, inputs: [{{name: image, shape: [1, 8, 8, 1], layout: NHWC}}], "
    "preprocess: {preprocess}}}"
)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ("{imaeg: {scale: 2}}", ": model.preprocess.imaeg: the model has no input 'imaeg'; did you mean 'i"),
        ("{image: {scale: 1/0}}", ": model.preprocess.image.scale: 1/0 is not a finite number"),
        ("{image: {sclae: 2}}", ": model.preprocess.image.sclae: unknown key 'sclae'; did you mean 'scale'?"),
        ("{sclae: 2}", ": model.preprocess.sclae: unknown key 'sclae'; did you mean 'scale'?"),
        ("{image: {scale: 2}, scale: 3}", "'image' has a mapping, as for an input, and 'scale' has none"),
        ("{image: {scale: 2}, mask: }", "'image' has a mapping, as for an input, and 'mask' has none"),
        ("[1]", ": model.preprocess: "),
    ],
)  # fmt: skip
def test_mistakes_in_preprocess_have_a_position(write_recipe: Write, preprocess: str, message: str) -> None:
    model = Path(__file__).resolve().parents[2] / "recipes" / "digits" / "digits.keras"
    path = write_recipe(model=TWO.format(model=model, preprocess=preprocess))
    with pytest.raises(RecipeError) as caught:
        make_plan(path)
    line = (
        path.read_text()
        .splitlines()
        .index(next(x for x in path.read_text().splitlines() if x[:5] == "model"))
        + 1
    )
    assert f"{path}:{line}:" in str(caught.value) and message in str(caught.value)


def test_an_unknown_input_of_a_file_is_found_when_the_plan_is_made(write_recipe: Write) -> None:
    model = Path(__file__).resolve().parents[2] / "recipes" / "digits" / "digits.keras"
    path = write_recipe(model=f"{{path: {model}, preprocess: {{pixels: {{scale: 1/16}}}}}}")
    with pytest.raises(
        RecipeError, match=r"model\.preprocess\.pixels: the model has no input 'pixels'; known: image"
    ):
        make_plan(path)


def test_inputs_described_in_another_order_than_the_file_has_them(
    write_recipe: Write, tmp_path: Path
) -> None:
    """A SavedModel takes its inputs by name, a functional model in its own order."""
    import json
    import zipfile

    def layer(name: str) -> dict[str, object]:
        return {
            "module": "keras.layers",
            "class_name": "InputLayer",
            "config": {"name": name, "batch_shape": [None, None]},
        }

    config = {"layers": [layer("b"), layer("a")], "input_layers": [["b", 0, 0], ["a", 0, 0]]}
    with zipfile.ZipFile(tmp_path / "two.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Functional", "config": config}))
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("model.weights.h5", "x")
    inputs = "inputs: [{name: a, shape: [1, 2]}, {name: b, shape: [1, 3]}]"
    plan = make_plan(write_recipe(model=f"{{path: two.keras, {inputs}}}", data="{}", metric=""))
    assert [(spec.name, spec.shape) for spec in plan.source.inputs] == [("b", (1, 3)), ("a", (1, 2))]


def test_data_that_names_no_input_of_the_model_is_refused_before_anything_slow(
    write_recipe: Write, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 8, 8, 1)))
    data = "{evaluation: {uses: npz, with: {path: d.npz, label: null, inputs: {imag: x}}}}"
    with pytest.raises(UsageError, match=r"d\.npz: a sample has an input 'imag'.*did you mean 'image'\?"):
        check_data(make_plan(write_recipe(data=data, metric="")))


# bundles


def test_a_contract_with_a_preprocessing_per_input(tmp_path: Path) -> None:
    inputs, how = (INT8_IMAGE, IDS), (SCALED.model_copy(update={"layout": "NCHW"}), Preprocessing())
    raw = [np.zeros((3, 3, 4, 4), np.uint8), np.arange(15).reshape(3, 5)]
    folder, contract = toy_bundle(tmp_path, inputs=inputs, how=how, raw=raw)
    assert contract.schema_version == 2 and contract.preprocessing == how
    assert contract.preprocessing_of(0) == how[0] and contract.preprocessing_of(1) == how[1]
    text = (folder / "manifest.json").read_text()
    assert read_contract(text, "m") == contract
    with pytest.raises(Exception, match="preprocessing of 1 inputs, but it has 2"):
        read_contract(contract.model_copy(update={"preprocessing": how[:1]}).encode(), "m")
    card = (folder / "MODEL_CARD.md").read_text()
    assert "- image: Raw samples: 3 × 4 × 4 uint8, NCHW. Preprocessing: × 0.00392156863." in card
    assert "- ids: Raw samples: 5 int64. Preprocessing: none, values are used unchanged." in card


def test_a_contract_with_one_preprocessing_keeps_its_form(tmp_path: Path) -> None:
    _, contract = toy_bundle(tmp_path)
    assert contract.schema_version == 1 and isinstance(contract.preprocessing, Preprocessing)
    assert contract.preprocessing_of(3) == contract.preprocessing
    assert read_contract(contract.encode(), "m") == contract
