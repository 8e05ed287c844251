"""Bundles: contents, determinism, and examples that run."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgeopt.commands.optimize import optimize
from edgeopt.config.files import file_digest
from edgeopt.errors import UsageError, VerificationError
from edgeopt.evaluation.samples import fitted
from edgeopt.model import Preprocessing, TensorSpec
from edgeopt.publish.bundle import REAL_INPUT, make_bundle, publishable
from edgeopt.publish.contract import Contract, read_contract
from edgeopt.publish.kit import vectors
from edgeopt.results import EMULATED, Report, Verdict
from test_firmware import CPP17, build
from toy_run import NORMALIZED, PIXELS, every_value, toy_bundle, write_run

pytestmark = pytest.mark.usefixtures("kept_workers")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A real run: the digits as float and int8, for TFLite and ONNX."""
    folder = tmp_path_factory.mktemp("digits")
    recipe = Path(__file__).resolve().parent.parent / "recipes" / "digits-keras.yaml"
    given = ["formats=[tflite, onnx]", "latency={min_seconds: 0.01, min_runs: 3}"]
    return optimize(recipe, out=folder / "run", store=folder / "store", overrides=given)


def bundle_of(report: Report, folder: Path, variant: str, format_name: str) -> tuple[Path, Contract]:
    assert report.folder is not None
    (row,) = (r for r in publishable(report) if (r.variant, r.format) == (variant, format_name))
    return folder, make_bundle(report.folder, report, row, folder, name="digits", version="1.0.0")


# Contents


@pytest.mark.slow
def test_the_contract_says_what_was_measured(tmp_path: Path, digits: Report) -> None:
    folder, contract = bundle_of(digits, tmp_path / "b", "int8", "tflite")
    assert contract.schema_version == 1
    assert (contract.name, contract.version, contract.device) == ("digits", "1.0.0", "host")
    assert contract.measured["top1"].value > 0.97
    assert contract.measured["top1"].n == 500
    # The layout of the raw samples is that of the source model, as the recipe gives none.
    assert contract.preprocessing == Preprocessing(scale=1 / 16, layout="NHWC")
    assert contract.labels == tuple("0123456789")
    assert [raw.model_dump() for raw in contract.raw] == [{"shape": (8, 8, 1), "dtype": "uint8"}]
    assert contract.inputs[0].shape == (1, 8, 8, 1)
    assert "quantize_tflite" in contract.chain
    assert {verdict.gate.split()[0] for verdict in contract.gates} == {"top1", "size_bytes"}
    assert contract.gates_pass
    assert contract.golden is not None
    assert (contract.golden.count, contract.golden.device) == (8, "host")
    # The float output was dequantized from int8: a step of the softmax is 1/256.
    assert contract.golden.units == (1 / 256,)
    assert contract.arena is None
    assert not (folder / "firmware").exists()
    golden = {name: np.load(folder / name) for name in contract.golden.files}
    prepared = [
        fitted(raw, contract.preprocessing, contract.inputs[0], "") for raw in golden["golden/raw_0.npy"]
    ]
    assert np.array_equal(np.concatenate(prepared), golden["golden/input_0.npy"])
    right = golden["golden/output_0.npy"].argmax(axis=1) == golden["golden/label.npy"]
    assert right.mean() > 0.8


def test_every_file_is_listed_with_its_digest(tmp_path: Path) -> None:
    folder, contract = toy_bundle(tmp_path, labels=["a", "b", "c", "d", "e"])
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    listed = {file.name: file for file in (contract.file, *contract.files)}
    assert set(listed) == there - {"manifest.json"}
    assert {"toy.tflite", "MODEL_CARD.md", "labels.txt", "golden/raw_0.npy", "firmware/self_test.c"} <= set(
        listed
    )
    for name, file in listed.items():
        assert file.sha256 == file_digest(folder / name)
        assert file.size_bytes == (folder / name).stat().st_size
    text = (folder / "manifest.json").read_bytes()
    assert read_contract(text, "manifest.json") == contract


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    report = write_run(tmp_path / "run", labels=["a", "b", "c", "d", "e"])
    folders = [tmp_path / "one", tmp_path / "another" / "place"]
    for folder in folders:
        make_bundle(tmp_path / "run", report, report.results[0], folder, name="toy", version="1.0.0")
    one, other = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in folders
    )
    assert one == other
    assert len(one) > 15
    assert not [name for name, data in one.items() if str(tmp_path).encode() in data]


def test_what_lies_in_the_folder_already_belongs_to_it(tmp_path: Path) -> None:
    report = write_run(tmp_path / "run")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "recipe.yaml").write_text("version: 1\n")
    contract = make_bundle(
        tmp_path / "run", report, report.results[0], tmp_path / "b", name="toy", version="1"
    )
    assert "recipe.yaml" in {file.name for file in contract.files}
    with pytest.raises(UsageError, match="already contains a bundle"):
        make_bundle(tmp_path / "run", report, report.results[0], tmp_path / "b", name="toy", version="1")


def test_only_gates_about_the_row_are_told(tmp_path: Path) -> None:
    report = write_run(tmp_path / "run")
    row = report.results[0]
    where = {"variant": row.variant, "format": row.format, "device": row.device}
    about = Verdict(gate="top1 max_drop 0.01", status="fail", measured=0.1, limit=0.01, blocks=True, **where)
    others = [
        about.model_copy(update={"device": "host"}),
        about.model_copy(update={"variant": "-", "format": "-", "device": "-"}),
    ]
    report = report.model_copy(update={"gates": (about, *others)})
    contract = make_bundle(tmp_path / "run", report, row, tmp_path / "b", name="toy", version="1")
    assert contract.gates == (about,)
    assert not contract.gates_pass
    assert "top1 max_drop 0.01: fail" in (tmp_path / "b" / "MODEL_CARD.md").read_text()


def test_a_manifest_of_a_later_schema_is_told_apart_from_a_damaged_one() -> None:
    with pytest.raises(VerificationError, match="has schema 7; this edgeopt supports only") as caught:
        read_contract('{"schema": 7, "what": "is not known"}', "manifest.json")
    assert caught.value.exit_code == 1
    with pytest.raises(VerificationError, match="is not a valid bundle contract: name"):
        read_contract('{"schema": 1}', "manifest.json")
    with pytest.raises(VerificationError, match="is not a valid bundle contract"):
        read_contract(b"\xff\x00", "manifest.json")


# Golden vectors


def test_a_device_that_executes_nothing_has_the_vectors_of_another(tmp_path: Path) -> None:
    folder, contract = toy_bundle(
        tmp_path,
        device="ethos-u55-128",
        runtime="vela 5.2.0",
        golden_of="cortex-m",
        measured={"sram_bytes": 22_080, "estimated_latency_ms": 0.2, "parity_max_steps": 3.0},
        operators=["QUANTIZE", "ethos-u"],
    )
    card = (folder / "MODEL_CARD.md").read_text()
    assert "## Estimated for ethos-u55-128" in card and "nothing was run on the device" in card
    assert contract.golden is not None
    assert (contract.golden.device, contract.golden.tolerance) == ("cortex-m", 3)
    assert contract.golden.emulated and not contract.emulated
    assert "on cortex-m (emulated)" in (folder / "firmware" / "golden_vectors.h").read_text()
    assert "AddEthosU" in (folder / "firmware" / "op_resolver.h").read_text()


def test_an_npu_needs_room_for_what_tflm_keeps(tmp_path: Path) -> None:
    report = write_run(tmp_path / "run", measured={"arena_tail_bytes": 5000})
    (tflm,) = report.results
    values = {"sram_bytes": tflm.measurements["arena_bytes"].model_copy(update={"value": 22_000.0})}
    npu = tflm.model_copy(update={"device": "npu", "runtime": "vela 5.2.0", "measurements": values})
    report = report.model_copy(update={"results": (tflm, npu)})
    contract = make_bundle(tmp_path / "run", report, npu, tmp_path / "b", name="toy", version="1")
    assert contract.arena is not None
    assert contract.arena.measured_bytes == 27_000
    assert contract.arena.recommended_bytes == 30 * 1024
    assert contract.arena.source == "sram_bytes on npu + arena_tail_bytes on cortex-m (emulated)"


def test_damaged_vectors_are_told(tmp_path: Path) -> None:
    report = write_run(tmp_path / "run")
    (tmp_path / "run" / "golden" / "int8.tflite.cortex-m.npz").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(UsageError, match=r"cannot read the golden vectors .*int8\.tflite\.cortex-m\.npz"):
        make_bundle(tmp_path / "run", report, report.results[0], tmp_path / "b", name="toy", version="1")


# Refusals


def test_only_what_is_whole_is_published(tmp_path: Path) -> None:
    report = write_run(tmp_path / "run")
    (good,) = report.results
    failed = good.model_copy(update={"status": "failed", "reason": "broken"})
    lost = good.model_copy(update={"artifact": None})
    report = report.model_copy(update={"results": (failed, good, lost)})
    assert publishable(report) == [good]
    with pytest.raises(UsageError, match=r"int8\.tflite on cortex-m cannot be published: failed"):
        make_bundle(tmp_path / "run", report, failed, tmp_path / "b", name="toy", version="1")


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    report = write_run(tmp_path / "run")
    model = tmp_path / "run" / "models" / "int8.tflite"
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(VerificationError, match="is not the file that was measured"):
        make_bundle(tmp_path / "run", report, report.results[0], tmp_path / "b", name="toy", version="1")
    assert not (tmp_path / "b").exists()


def test_a_report_does_not_lead_out_of_its_run(tmp_path: Path) -> None:
    report = write_run(tmp_path / "run")
    (row,) = report.results
    assert row.artifact is not None
    away = row.model_copy(update={"artifact": row.artifact.model_copy(update={"path": "../secret"})})
    with pytest.raises(UsageError, match="is outside the run"):
        make_bundle(tmp_path / "run", report, away, tmp_path / "b", name="toy", version="1")


def test_a_run_without_its_record_is_told(tmp_path: Path) -> None:
    report = write_run(tmp_path / "run")
    (tmp_path / "run" / "models" / "int8.tflite.json").unlink()
    with pytest.raises(UsageError, match=r"cannot read .*int8\.tflite\.json"):
        make_bundle(tmp_path / "run", report, report.results[0], tmp_path / "b", name="toy", version="1")


# The model card


def test_the_card_is_in_the_hubs_form(tmp_path: Path) -> None:
    folder, _ = toy_bundle(
        tmp_path,
        name="k|w<s>",
        measured={"top1_detectable_drop": 0.0152, "top1_drop": 0.004},
        labels=["a`b"] * 5,
    )
    card = (folder / "MODEL_CARD.md").read_text()
    _, front, text = card.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["library_name"] == "litert"
    assert about["metrics"] == ["accuracy"]
    (entry,) = about["model-index"]
    assert entry["name"] == "k|w<s>"
    (found,) = entry["results"]
    assert set(found) == {"task", "dataset", "metrics"}
    assert found["metrics"] == [{"type": "accuracy", "name": "top1 on cortex-m", "value": 0.9}]
    assert "license" not in about
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == [
        "In this folder",
        "Intended input",
        "Measured on cortex-m (emulated)",
        "Provenance",
        "Limits of the evaluation",
    ]
    assert "100 samples cannot detect a drop of top1 smaller than 1.52" in text
    assert "k\\|w&lt;s>" in text
    assert "2. quantize_tflite" in text


def test_the_card_is_all_that_somebody_with_the_folder_needs(tmp_path: Path) -> None:
    values = {"macs": 2_656_770, "parity_max_steps": 34.0, "top1_drop": -0.0075}
    folder, contract = toy_bundle(tmp_path, measured=values, labels=["a"] * 5)
    card = (folder / "MODEL_CARD.md").read_text()
    names = ("toy.tflite", "golden/", "firmware/", "example/", "labels.txt", "manifest.json", "recipe.yaml")
    for name in names:
        assert f"\n- `{name}`: " in card
    assert "example/run_model.py" not in card  # those in its subfolders are for other devices
    assert "`toy_self_test(invoke)` returns 0, or step × 10000 + vector × 100 + tensor" in card
    assert "run on another processor" in card
    assert "| macs: multiply-accumulates of one run | 2,656,770 |" in card
    assert "parity" not in card
    assert contract.emulated
    header = (folder / "firmware" / "model_contract.h").read_text()
    assert "Measured on cortex-m (emulated)" in header
    assert "arena_bytes on cortex-m (emulated)" in header


def test_a_device_is_emulated_if_its_results_say_so(tmp_path: Path) -> None:
    report = write_run(tmp_path / "run", device="my-board")
    for name, notes in (("real", ()), ("emulated", (EMULATED,))):
        row = report.results[0].model_copy(update={"notes": notes})
        told = report.model_copy(update={"results": (row,)})
        contract = make_bundle(tmp_path / "run", told, row, tmp_path / name, name="toy", version="1")
        assert contract.golden is not None
        assert contract.emulated == contract.golden.emulated == bool(notes)
        for file in ("MODEL_CARD.md", "firmware/golden_vectors.h", "firmware/README.md"):
            assert ("emulated" in (tmp_path / name / file).read_text()) == bool(notes)


def test_the_card_is_silent_about_other_artifacts(tmp_path: Path) -> None:
    report = write_run(tmp_path / "run")
    notes = (
        "device cortex-m has no runtime for onnx: not measured there",
        "float.tflite is built, but not measured on ethos-u55-128: it computes with integers",
        "12 samples are in two sets",
    )
    report = report.model_copy(update={"run": report.run.model_copy(update={"notes": notes})})
    make_bundle(tmp_path / "run", report, report.results[0], tmp_path / "b", name="toy", version="1")
    card = (tmp_path / "b" / "MODEL_CARD.md").read_text()
    assert notes[2] in card
    assert "no runtime for" not in card
    assert "is built, but" not in card


def test_a_kit_that_takes_real_numbers_says_how_to_change_that(tmp_path: Path) -> None:
    spec = PIXELS.model_copy(update={"dtype": "float32", "scale": None, "zero_point": None})
    folder, contract = toy_bundle(tmp_path / "a", inputs=[spec], operators=["QUANTIZE", "CONV_2D"])
    assert contract.notes == (REAL_INPUT,)
    assert "quantize: {scheme: int8, io: int8}" in (folder / "MODEL_CARD.md").read_text()
    assert toy_bundle(tmp_path / "b", operators=["QUANTIZE", "CONV_2D"])[1].notes == ()
    assert toy_bundle(tmp_path / "c", inputs=[spec])[1].notes == ()


# Examples


def run_example(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "example" / "run_model.py")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["float", "int8"])
@pytest.mark.parametrize("format_name", ["tflite", "onnx"])
def test_the_example_runs(tmp_path: Path, digits: Report, variant: str, format_name: str) -> None:
    folder, contract = bundle_of(digits, tmp_path / "b", variant, format_name)
    done = run_example(folder)
    assert done.returncode == 0, done.stderr
    assert re.match(r"8 golden vectors: largest deviation 0(\.\d+)? units, tolerance 1", done.stdout)
    assert contract.golden is not None
    output = folder / "golden" / "output_0.npy"
    values = np.load(output)
    np.save(output, values + np.float32(2.5 * contract.golden.units[0]))
    assert run_example(folder).returncode == 1
    raw = folder / "golden" / "raw_0.npy"
    np.save(raw, np.load(raw)[:, ::-1])
    assert "preprocessing does not reproduce the golden input" in run_example(folder).stderr


TORCH = """
import sys
import numpy as np
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.softmax(self.conv(x).mean((2, 3)), 1)

given, answers, target = sys.argv[1:]
net, x = Net().eval(), torch.from_numpy(np.load(given))
np.save(answers, net(x).detach().numpy())
if target.endswith(".ptl"):
    torch.jit.freeze(torch.jit.trace(net, x[:1]))._save_for_lite_interpreter(target)
else:
    from executorch.exir import to_edge
    program = to_edge(torch.export.export(net, (x[:1],))).to_executorch()
    open(target, "wb").write(program.buffer)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("format_name", "suffix"), [("torchscript", ".ptl"), ("executorch", ".pte")])
def test_the_example_for_torch_runs(tmp_path: Path, format_name: str, suffix: str) -> None:
    for package in ("torch", "executorch"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    spec = TensorSpec(name="x", shape=(1, 3, 16, 16), dtype="float32", layout="NCHW")
    how = NORMALIZED.model_copy(update={"layout": "NHWC"})
    raw = every_value("uint8", (16, 16, 3))
    np.save(tmp_path / "x.npy", np.concatenate([fitted(sample, how, spec, "") for sample in raw]))
    model = tmp_path / f"model{suffix}"
    command = [sys.executable, "-W", "ignore", "-c", TORCH, tmp_path / "x.npy", tmp_path / "y.npy", model]
    subprocess.run(command, check=True, capture_output=True)
    answers = np.load(tmp_path / "y.npy")
    report = write_run(
        tmp_path / "run",
        format_name=format_name,
        model=model.read_bytes(),
        inputs=[spec],
        outputs=[TensorSpec(name="y", shape=(1, 4))],
        how=how,
        raw=[raw],
        device="host",
        runtime=f"{format_name} 1",
    )
    golden = tmp_path / "run" / "golden" / f"int8.{format_name}.host.npz"
    with np.load(golden) as archive:
        arrays = dict(archive)
    np.savez(golden, **{**arrays, "output_0": answers})
    make_bundle(tmp_path / "run", report, report.results[0], tmp_path / "b", name="toy", version="1")
    done = run_example(tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert re.match(r"3 golden vectors: largest deviation \S+ units, tolerance 1", done.stdout)


LITE_API = {
    "interpreter.h": """
#include <cstdint>
#include <cstddef>
enum TfLiteStatus { kTfLiteOk = 0 };
namespace tflite {
class Interpreter {
 public:
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  template <class T> T* typed_input_tensor(int);
  template <class T> T* typed_output_tensor(int);
};
}
""",
    "model.h": """
namespace tflite {
class FlatBufferModel { public: static std::unique_ptr<FlatBufferModel> BuildFromFile(const char*); };
class InterpreterBuilder {
 public:
  InterpreterBuilder(const FlatBufferModel&, const ops::builtin::BuiltinOpResolver&);
  TfLiteStatus operator()(std::unique_ptr<Interpreter>*);
};
}
""",
    "kernels/register.h": """
namespace tflite { namespace ops { namespace builtin {
class BuiltinOpResolver { public: BuiltinOpResolver(); };
} } }
""",
}
ONNX_API = """
#include <cstdint>
#include <cstddef>
#include <memory>
enum OrtAllocatorType { OrtArenaAllocator };
enum OrtMemType { OrtMemTypeDefault };
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING };
struct OrtCUDAProviderOptions {};
namespace Ort {
struct Env { Env(OrtLoggingLevel, const char*); };
struct SessionOptions { void AppendExecutionProvider_CUDA(const OrtCUDAProviderOptions&); };
struct AllocatorWithDefaultOptions {};
struct MemoryInfo { static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType); };
struct RunOptions {};
using AllocatedStringPtr = std::unique_ptr<char, void (*)(char*)>;
struct Value {
  template <typename T>
  static Value CreateTensor(const MemoryInfo&, T*, size_t, const int64_t*, size_t);
  template <typename T> const T* GetTensorData() const;
};
struct Session {
  Session(Env&, const char*, const SessionOptions&);
  AllocatedStringPtr GetInputNameAllocated(size_t, AllocatorWithDefaultOptions&);
  AllocatedStringPtr GetOutputNameAllocated(size_t, AllocatorWithDefaultOptions&);
  std::vector<Value> Run(const RunOptions&, const char* const*, const Value*, size_t,
                         const char* const*, size_t);
};
}
"""


@pytest.mark.parametrize("runtime", ["litert", "tflite_runtime", "onnxruntime", "onnxruntime_cuda"])
def test_the_example_in_cpp_fits_the_api(tmp_path: Path, runtime: str) -> None:
    format_name, model = ("onnx", b"onnx") if runtime.startswith("onnx") else ("tflite", None)
    folder, _ = toy_bundle(
        tmp_path, device="host", runtime=f"{runtime} 2", format_name=format_name, model=model
    )
    assert not (folder / "firmware").exists()
    for name, text in LITE_API.items():
        header = tmp_path / "api" / "tensorflow" / "lite" / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(text)
    # The library's own header includes these; the example must not depend on this.
    (tmp_path / "api" / "onnxruntime_cxx_api.h").write_text(f"#include <vector>\n{ONNX_API}")
    source = "run_onnx.cpp" if format_name == "onnx" else "run_tflite.cpp"
    build(CPP17, "-I", tmp_path / "api", "-fsyntax-only", source, where=folder / "example")
    compile((folder / "example" / "run_model.py").read_text(), "run_model.py", "exec")


@pytest.mark.parametrize(
    ("format_name", "runtime", "source"),
    [("tflite", "adb_litert", "RunTflite.kt"), ("executorch", "adb_executorch", "RunExecutorch.kt")],
)
def test_an_android_device_has_an_example_in_kotlin(
    tmp_path: Path, format_name: str, runtime: str, source: str
) -> None:
    how = NORMALIZED.model_copy(update={"layout": "NCHW"})
    raw = [every_value("uint8", (16, 16, 3)).transpose(0, 3, 1, 2)]
    model = b"pte" if format_name == "executorch" else None
    folder, _ = toy_bundle(
        tmp_path, device="phone", runtime=runtime, format_name=format_name, model=model, how=how, raw=raw,
        golden_of="host",
    )  # fmt: skip
    assert [file.name for file in (folder / "example").iterdir() if file.is_file()] == [source]
    text = (folder / "example" / source).read_text()
    assert "{{" not in text
    for opening, closing in ("()", "[]", "{}"):
        assert text.count(opening) == text.count(closing)
    assert "val at = (i % 3) * 256 + i / 3" in text
    assert "value -= MEAN_0[at / 256]" in text
    assert "coerceIn(-128f, 127f).toInt().toByte()" in text
    assert "import org.tensorflow.lite.Interpreter" in text or "import org.pytorch.executorch.Module" in text


def test_golden_vectors_of_reference_kernels_stand_for_a_device_without(tmp_path: Path) -> None:
    """Any preset with the kernels of a microcontroller does, before this machine and others."""
    report = write_run(tmp_path, device="ethos-u55-128", runtime="vela 5.2.0", golden_of="host")
    (row,) = report.results
    stem = tmp_path / "golden" / "int8.tflite"
    for device, taken in (("arm64-emulated", "host"), ("stm32f4", "stm32f4"), ("aaa", "stm32f4")):
        shutil.copy(f"{stem}.host.npz", f"{stem}.{device}.npz")
        found = vectors.find(tmp_path, row)
        assert found is not None and found.device == taken
