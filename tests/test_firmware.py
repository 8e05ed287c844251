"""The firmware kit: it compiles without warnings, and agrees with Python to the last unit."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgeopt.devices.environments import environment_python
from edgeopt.errors import CannotRunError
from edgeopt.evaluation.samples import fitted
from edgeopt.formats.tflite.files.model_file import kind_of, load
from edgeopt.model import Array, Preprocessing, TensorSpec
from edgeopt.publish.bundle import make_bundle
from edgeopt.publish.kit import firmware
from edgeopt.publish.kit.c_names import comment, file_name, identifier, string
from edgeopt.publish.kit.firmware import resolver_method
from edgeopt.publish.kit.preprocess_c import fixed, input_code
from edgeopt.publish.pulling import check_folder
from toy_run import CLASSES, NORMALIZED, PIXELS, every_value, toy_bundle, write_run

STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
C99 = ("gcc", "-std=c99", *STRICT)
CORTEX_M4 = ("arm-none-eabi-gcc", "-std=c99", "-mcpu=cortex-m4", "-mthumb", *STRICT)
CPP17 = ("g++", "-std=c++17", *STRICT, "-Wno-unused-parameter")
EVERY_SOURCE = ("golden_vectors.c", "model_data.c", "preprocess.c", "self_test.c")

HOSTILE = [
    "int",
    "8 ball",
    "模型",
    "",
    "a" * 10_000,
    "../../etc/passwd",
    "CON",
    "x*/y??/\\",
    "é\n\u202e",
    "main",
]


def needs(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


def build(command: Sequence[str], *arguments: str | Path, where: Path) -> None:
    """Run a compiler; its output becomes the failure message."""
    needs(command[0])
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=where, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[:4000]


# Compiling


@pytest.mark.parametrize("command", [C99, CORTEX_M4, (*C99, "-O3", "-pedantic"), (*CORTEX_M4, "-O2")])
def test_the_kit_compiles_without_a_warning(tmp_path: Path, command: tuple[str, ...]) -> None:
    folder, _ = toy_bundle(tmp_path, labels=["a", "b", "c", "d", "e"])
    kit = folder / "firmware"
    for source in EVERY_SOURCE:
        build(command, "-c", source, "-o", tmp_path / "object.o", where=kit)


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_the_model_is_called(tmp_path: Path, name: str) -> None:
    labels = [name or "x", 'quote " and ??/ \\ 0', "*/ #error", "tab\t7", "ж1"]
    folder, contract = toy_bundle(tmp_path, name, labels=labels)
    assert re.fullmatch(r"[a-z][a-z0-9_]{0,50}", identifier(name))
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}\.tflite", contract.file.name)
    assert (folder / contract.file.name).is_file()
    assert len((folder / "labels.txt").read_text().splitlines()) == len(labels)
    for source in ("model_data.c", "self_test.c"):
        build(C99, "-c", source, "-o", tmp_path / "object.o", where=folder / "firmware")


def test_names_stay_readable_and_apart() -> None:
    assert identifier("mlperf-tiny KWS.v2") == "mlperf_tiny_kws_v2"
    assert identifier("Café") == "cafe"
    assert identifier("2 fast") == "model_2_fast"
    assert identifier("class") == "model_class"
    assert len({identifier(name) for name in ("模型", "模形", "a" * 80, "a" * 81)}) == 4
    assert file_name("lpt1.txt") == "model-lpt1.txt"
    assert file_name("../a//b") == "a-b"
    assert len({file_name(name) for name in ("模型", "模形", "a" * 80, "a" * 81)}) == 4
    assert comment("a*/b??/c\nd\\") == "a* /b? ?/c d/"
    assert string('é"?\n1') == r'"\303\251\"\?\0121"'


def test_labels_come_back_from_c(tmp_path: Path) -> None:
    labels = ['quote " and ??/ \\ 0', "*/", "tab\t7", "ж1", ""]
    folder, _ = toy_bundle(tmp_path, labels=labels)
    library = shared(folder / "firmware", "model_data.c")
    found = (ctypes.c_char_p * len(labels)).in_dll(library, "toy_labels")
    assert [(text or b"").decode() for text in found] == labels
    size = (folder / "toy.tflite").stat().st_size
    data = (ctypes.c_ubyte * size).in_dll(library, "toy_model_data")
    assert bytes(data) == (folder / "toy.tflite").read_bytes()
    assert ctypes.addressof(data) % 16 == 0


def shared(kit: Path, *sources: str, options: Sequence[str] = ("-O2",)) -> ctypes.CDLL:
    """Sources of a kit as a shared library for this machine."""
    target = kit / "kit.so"
    build((*C99, *options), "-shared", "-fPIC", *sources, "-o", target, where=kit)
    return ctypes.CDLL(str(target))


# Preprocessing

HALF = Preprocessing(scale=1 / 255)
Q15 = Preprocessing(scale=1 / 32768)
SIGNED = TensorSpec(name="x", shape=(1, 16, 16, 1), dtype="int8", scale=1 / 255, zero_point=-128)
SOUND = TensorSpec(name="x", shape=(1, 65536, 1), dtype="int8", scale=0.0123, zero_point=7)


def like(spec: TensorSpec, **changes: Any) -> TensorSpec:
    return spec.model_copy(update=changes)


REAL = {"dtype": "float32", "scale": None, "zero_point": None}
CASES: list[tuple[str, TensorSpec, Preprocessing, str]] = [
    ("uint8", PIXELS, NORMALIZED, "table"),
    ("uint8", like(PIXELS, **REAL), NORMALIZED, "table"),
    ("uint8", like(PIXELS, dtype="uint8", zero_point=114), NORMALIZED, "table"),
    ("uint8", like(PIXELS, dtype="int16", scale=1e-4, zero_point=0), NORMALIZED, "table"),
    ("uint8", SIGNED, HALF, "table"),
    ("uint8", like(SIGNED, dtype="uint8", scale=None, zero_point=None), Preprocessing(), "copy"),
    ("uint8", SIGNED, Preprocessing(scale=-1.0, mean=(-0.5,), std=(3.0,)), "table"),
    ("int8", SIGNED, Preprocessing(scale=1 / 128), "table"),
    ("int8", like(PIXELS, **REAL), NORMALIZED, "table"),
    ("bool", SIGNED, Preprocessing(), "table"),
    ("int16", SOUND, Preprocessing(scale=1 / 32768, std=(0.7,)), "runs"),
    ("uint16", SOUND, Preprocessing(scale=-1 / 65535, mean=(-0.5,), std=(0.3,)), "runs"),
    ("int16", like(SOUND, dtype="int16", scale=1 / 32768, zero_point=0), Q15, "copy"),
    ("int16", like(SOUND, dtype="int16", scale=1 / 8192, zero_point=0), Q15, "none"),
    ("int16", like(SOUND, **REAL), Q15, "none"),
    ("float32", PIXELS, NORMALIZED, "none"),
    ("float32", like(SIGNED, **REAL), Preprocessing(), "none"),
    ("float64", PIXELS, Preprocessing(scale=1 / 3), "none"),
    ("int64", like(SIGNED, **REAL), Preprocessing(scale=1 / 3), "none"),
    ("int64", like(SIGNED, dtype="int32", scale=None, zero_point=None), Preprocessing(), "copy"),
]  # fmt: skip
LAYOUTS = [("NHWC", "NHWC"), ("NCHW", "NHWC"), ("NHWC", "NCHW"), ("NCHW", "NCHW")]


@pytest.mark.parametrize(("dtype", "spec", "how", "kind"), CASES)
def test_preprocessing_in_c_is_preprocessing_in_python(
    tmp_path: Path, dtype: str, spec: TensorSpec, how: Preprocessing, kind: str
) -> None:
    shape = tuple(size or 1 for size in spec.shape[1:])
    raw = every_value(dtype, shape)
    agrees(tmp_path, raw, spec, how, kind)


@pytest.mark.parametrize(("source", "target"), LAYOUTS)
@pytest.mark.parametrize("changes", [{}, REAL], ids=["int8", "float32"])
def test_whatever_the_layouts(tmp_path: Path, source: Any, target: Any, changes: dict[str, Any]) -> None:
    # Not square, so that height and width cannot be confused.
    image, planar = (1, 16, 18, 3), (1, 3, 16, 18)
    spec = like(PIXELS, shape=image if target == "NHWC" else planar, layout=target, **changes)
    raw = every_value("uint8", image[1:])
    if source == "NCHW":
        raw = np.ascontiguousarray(raw.transpose(0, 3, 1, 2))
    agrees(tmp_path, raw, spec, NORMALIZED.model_copy(update={"layout": source}), "table")


def agrees(folder: Path, raw: Array, spec: TensorSpec, how: Preprocessing, kind: str) -> None:
    """Both versions of the C code, compiled with options that may fuse operations, match Python."""
    bundle, _ = toy_bundle(folder, inputs=[spec], how=how, raw=[raw])
    options = ("-O3", "-ffp-contract=fast", "-march=native")
    library = shared(bundle / "firmware", "preprocess.c", options=options)
    header = (bundle / "firmware" / "preprocess.h").read_text()
    assert ("#define TOY_PREPROCESS_0_FIXED 0" in header) == (kind == "none")
    assert fixed(how, spec, raw.dtype.name, max(len(how.mean), 1)).kind == kind
    for version in ["float"] if kind == "none" else ["float", "fixed"]:
        function = getattr(library, f"toy_preprocess_0_{version}")
        for sample in raw:
            wanted = fitted(sample, how, spec, "test")[0]
            got = np.empty_like(wanted)
            function(
                np.ascontiguousarray(sample).ctypes.data_as(ctypes.c_void_p),
                got.ctypes.data_as(ctypes.c_void_p),
            )
            assert got.tobytes() == wanted.tobytes(), version


def test_every_input_has_its_own_preprocessing_in_c(tmp_path: Path) -> None:
    ids = TensorSpec(name="ids", shape=(1, 6), dtype="int32")
    inputs, how = (PIXELS, ids), (NORMALIZED.model_copy(update={"layout": "NHWC"}), Preprocessing())
    raw = [every_value("uint8", (16, 16, 3)), np.arange(18, dtype=np.int64).reshape(3, 6) * 1000]
    bundle, _ = toy_bundle(tmp_path, inputs=inputs, how=how, raw=raw)
    library = shared(bundle / "firmware", "preprocess.c")
    for index, (spec, steps, samples) in enumerate(zip(inputs, how, raw, strict=True)):
        for version in ("float", "fixed"):
            for sample in samples:
                wanted = fitted(sample, steps, spec, "test")[0]
                got = np.empty_like(wanted)
                function = getattr(library, f"toy_preprocess_{index}_{version}")
                function(
                    np.ascontiguousarray(sample).ctypes.data_as(ctypes.c_void_p),
                    got.ctypes.data_as(ctypes.c_void_p),
                )
                assert got.tobytes() == wanted.tobytes(), (spec.name, version)


def test_values_out_of_range_and_no_numbers_stay_in_range(tmp_path: Path) -> None:
    spec = like(PIXELS, shape=(1, 8), layout=None)
    odd = np.array([1e30, -1e30, np.inf, -np.inf, np.nan, 0.0, 3.4e38, -3.4e38], np.float32)
    bundle, _ = toy_bundle(tmp_path, inputs=[spec], how=Preprocessing(), raw=[np.zeros((1, 8), np.float32)])
    library = shared(bundle / "firmware", "preprocess.c")
    got = np.zeros(8, np.int8)
    library.toy_preprocess_0_float(odd.ctypes.data_as(ctypes.c_void_p), got.ctypes.data_as(ctypes.c_void_p))
    assert got.tolist() == [127, -128, 127, -128, -128, -14, 127, -128]


def test_why_there_is_no_fixed_version_is_told(tmp_path: Path) -> None:
    spec = like(PIXELS, shape=(1, 4), layout=None)
    raw = [np.zeros((1, 4), np.float32)]
    folder, _ = toy_bundle(tmp_path, inputs=[spec], how=Preprocessing(), raw=raw)
    assert "raw samples are float32" in (folder / "firmware" / "preprocess.h").read_text()


def test_a_type_without_c_code_is_named() -> None:
    with pytest.raises(CannotRunError, match="'x' has type complex64"):
        input_code(0, TensorSpec(name="x", shape=(1, 2), dtype="complex64"), (2,), None, Preprocessing())


def test_fast_math_is_refused(tmp_path: Path) -> None:
    folder, _ = toy_bundle(tmp_path)
    with pytest.raises(AssertionError, match="without -ffast-math"):
        build((*C99, "-ffast-math"), "-c", "preprocess.c", "-o", "x.o", where=folder / "firmware")


# The self-test


MAIN = """
#include <stdio.h>
#include <string.h>
#include "golden_vectors.h"
#include "self_test.h"

static int invoke(const NAME_inputs *inputs, NAME_outputs *outputs)
{
    size_t i;
    for (i = 0; i < UPPER_GOLDEN_COUNT; ++i) {
        if (memcmp(inputs, &NAME_golden_inputs[i], sizeof *inputs) == 0) {
            *outputs = NAME_golden_outputs[i];
            if (i == VECTOR) {
                CHANGE;
            }
            return i == BROKEN;
        }
    }
    return 1;
}

int main(void)
{
    printf("%ld", (long)NAME_self_test(invoke));
    return 0;
}
"""


def self_test(
    kit: Path, change: str = "(void)0", vector: int = 99, broken: int = 99, name: str = "toy"
) -> int:
    """Code of the kit's self-test for a model that returns the golden outputs with one change."""
    code = MAIN.replace("NAME", name).replace("UPPER", name.upper())
    (kit / "main.c").write_text("#include <stddef.h>\n" + code)
    defined = (f"-DCHANGE={change}", f"-DVECTOR={vector}", f"-DBROKEN={broken}")
    build(("gcc", "-std=c99", *defined), "main.c", *EVERY_SOURCE, "-o", "check", where=kit)
    return int(subprocess.run([kit / "check"], capture_output=True, text=True, check=True).stdout)


def test_the_self_test_names_the_first_failure(tmp_path: Path) -> None:
    second = TensorSpec(name="real", shape=(1, 3), dtype="float32")
    folder, contract = toy_bundle(tmp_path, outputs=[CLASSES, second])
    kit = folder / "firmware"
    assert contract.golden is not None
    assert contract.golden.tolerance == 1
    assert contract.golden.units[0] == 1.0
    unit = contract.golden.units[1]
    assert self_test(kit) == 0
    assert self_test(kit, "outputs->output_0[4] = (int8_t)(outputs->output_0[4] + 1)", vector=2) == 0
    assert self_test(kit, "outputs->output_0[4] = (int8_t)(outputs->output_0[4] + 2)", vector=2) == 30200
    assert self_test(kit, f"outputs->output_1[2] += {0.9 * unit:.9g}f", vector=1) == 0
    assert self_test(kit, f"outputs->output_1[2] += {1.2 * unit:.9g}f", vector=1) == 30101
    assert self_test(kit, "outputs->output_1[0] /= 0.0f, outputs->output_1[0] *= 0.0f", vector=1) == 30101
    assert self_test(kit, broken=1) == 40100
    raw = (kit / "golden_vectors.c").read_text()
    first = re.search(r"\{\n    \{\n        (\d+)u?, ", raw)
    assert first is not None
    other = str((int(first[1]) + 128) % 256)
    (kit / "golden_vectors.c").write_text(raw[: first.start(1)] + other + raw[first.end(1) :])
    assert self_test(kit) == 10000


def test_the_tolerance_can_be_raised_when_it_is_compiled(tmp_path: Path) -> None:
    folder, _ = toy_bundle(tmp_path)
    kit = folder / "firmware"
    off = "outputs->output_0[4] = (int8_t)(outputs->output_0[4] + 2)"
    assert self_test(kit, off, vector=2) == 30200
    header = kit / "golden_vectors.h"
    (doubled,) = re.findall(r"'-DTOY_GOLDEN_0_TOLERANCE=(.*?)'", (kit / "README.md").read_text())
    header.write_text(f"#define TOY_GOLDEN_0_TOLERANCE {doubled}\n{header.read_text()}")
    assert self_test(kit, off, vector=2) == 0


def test_the_readme_compiles_the_kit(tmp_path: Path) -> None:
    folder, _ = toy_bundle(tmp_path, labels=["a", "b", "c", "d", "e"])
    kit = folder / "firmware"
    text = (kit / "README.md").read_text()
    command = next(line.split() for line in text.splitlines() if "arm-none-eabi-gcc" in line)
    build(command, where=kit)
    assert {file.stem for file in kit.glob("*.o")} == {Path(name).stem for name in EVERY_SOURCE}
    for code in ("1vvtt", "2vvtt", "3vvtt", "4vv00", "50000", "60000"):
        assert f"| {code} | " in text


def test_the_readme_tries_the_kit_on_a_pc(tmp_path: Path) -> None:
    folder, _ = toy_bundle(tmp_path)
    kit = folder / "firmware"
    command = next(line for line in (kit / "README.md").read_text().splitlines() if "host/check.c" in line)

    def tried() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, shell=True, cwd=kit, capture_output=True, text=True, check=False)

    done = tried()
    assert (done.returncode, done.stderr) == (0, "") and "code 0: passed" in done.stdout
    check_folder(folder)  # the program lies in build
    build((*C99, "-pedantic"), "-I.", "-c", "host/check.c", "-o", "build/check.o", where=kit)
    code = (kit / "preprocess.c").read_text()
    (kit / "preprocess.c").write_text(code.replace("127", "126"))
    done = tried()
    assert done.returncode == 1 and "see README.md" in done.stdout


def test_vectors_keep_to_their_budget(tmp_path: Path) -> None:
    spec = like(PIXELS, shape=(1, 64, 64, 3))
    folder, contract = toy_bundle(tmp_path, inputs=[spec], raw=[every_value("uint8", (64, 64, 3), 8)])
    header = (folder / "firmware" / "golden_vectors.h").read_text()
    assert contract.golden is not None
    assert contract.golden.count == 8
    assert "#define TOY_GOLDEN_COUNT 2u" in header
    assert f"more than {firmware.BUDGET} KiB of flash" in header


# Operators, arena, and C++


def test_the_resolver_has_exactly_the_operators_used(tmp_path: Path) -> None:
    kinds = ("CONV_2D", "RELU", "RELU", "SOFTMAX", "UNIDIRECTIONAL_SEQUENCE_LSTM", "SignalRfft")
    folder, contract = toy_bundle(tmp_path, operators=kinds)
    header = (folder / "firmware" / "op_resolver.h").read_text()
    wanted = ["AddConv2D", "AddRelu", "AddRfft", "AddSoftmax", "AddUnidirectionalSequenceLSTM"]
    assert sorted(re.findall(r"resolver\.(\w+)\(\)", header)) == wanted
    assert "MicroMutableOpResolver<5>" in header
    assert contract.operators == tuple(sorted(set(kinds)))


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("L2_POOL_2D", "AddL2Pool2D"),
        ("PADV2", "AddPadV2"),
        ("CUMSUM", "AddCumSum"),
        ("SPACE_TO_BATCH_ND", "AddSpaceToBatchNd"),
        ("RESIZE_NEAREST_NEIGHBOR", "AddResizeNearestNeighbor"),
        ("BATCH_MATMUL", "AddBatchMatMul"),
        ("SELECT_V2", "AddSelectV2"),
        ("RELU6", "AddRelu6"),
        ("TFLite_Detection_PostProcess", "AddDetectionPostprocess"),
        ("SignalPCAN", "AddPCAN"),
        ("ethos-u", "AddEthosU"),
    ],
)
def test_methods_are_called_as_in_tflm(kind: str, method: str) -> None:
    assert resolver_method(kind) == method


def test_an_operator_that_tflm_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="TensorFlow Lite Micro has no operator TOPK_V2"):
        toy_bundle(tmp_path, operators=["TOPK_V2"])


def test_the_arena_has_a_margin(tmp_path: Path) -> None:
    folder, contract = toy_bundle(tmp_path, measured={"arena_bytes": 24_400})
    assert contract.arena is not None
    assert (contract.arena.measured_bytes, contract.arena.recommended_bytes) == (24_400, 27 * 1024)
    assert "#define TOY_ARENA_BYTES 27648u" in (folder / "firmware" / "model_contract.h").read_text()


TFLM = {
    "micro_mutable_op_resolver.h": """
#include <cstdint>
#include <cstddef>
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
#ifndef ADD
#define ADD kTfLiteOk
#endif
namespace tflite {
template <unsigned int tOpCount> class MicroMutableOpResolver {
 public:
  TfLiteStatus AddConv2D() { return ADD; }
  TfLiteStatus AddSoftmax() { return kTfLiteOk; }
  TfLiteStatus AddVarHandle() { return kTfLiteOk; }
};
}
""",
    "micro_interpreter.h": """
struct TfLiteTensor { union { char* raw; } data; };
namespace tflite {
struct Model;
class MicroAllocator { public: static MicroAllocator* Create(uint8_t*, size_t); };
class MicroResourceVariables { public: static MicroResourceVariables* Create(MicroAllocator*, int); };
class MicroInterpreter {
 public:
  template <unsigned int N>
  MicroInterpreter(const Model*, const MicroMutableOpResolver<N>&, uint8_t*, size_t) {}
  template <unsigned int N>
  MicroInterpreter(const Model*, const MicroMutableOpResolver<N>&, MicroAllocator*,
                   MicroResourceVariables*) {}
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor* input(size_t);
  TfLiteTensor* output(size_t);
};
}
""",
    "micro_allocator.h": "",
    "micro_resource_variable.h": "",
    "system_setup.h": "namespace tflite { void InitializeTarget(); }",
    "../schema/schema_generated.h": "namespace tflite { const Model* GetModel(const void*); }",
}


def write_tflm(folder: Path) -> None:
    """The parts of TFLM's headers that the program needs."""
    for name, text in TFLM.items():
        header = (folder / "tensorflow" / "lite" / "micro").resolve() / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.resolve().parent.mkdir(parents=True, exist_ok=True)
        header.write_text(text)


@pytest.mark.parametrize("operators", [("CONV_2D", "SOFTMAX"), ("CONV_2D", "VAR_HANDLE")])
@pytest.mark.parametrize("golden_of", ["", None])
def test_the_program_for_tflm_is_cpp17(
    tmp_path: Path, operators: tuple[str, ...], golden_of: str | None
) -> None:
    folder, _ = toy_bundle(tmp_path, operators=operators, golden_of=golden_of)
    write_tflm(tmp_path / "tflm")
    build(CPP17, "-I", tmp_path / "tflm", "-fsyntax-only", "main_tflm.cc", where=folder / "firmware")


BOARD = """
#include "op_resolver.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"
#include <cstdio>
extern "C" volatile int32_t toy_check_code;
static char memory[4096];
static TfLiteTensor tensor = {{memory}};
namespace tflite {
TfLiteStatus MicroInterpreter::AllocateTensors() { return ALLOCATE; }
TfLiteStatus MicroInterpreter::Invoke() { return INVOKE; }
TfLiteTensor* MicroInterpreter::input(size_t) { return &tensor; }
TfLiteTensor* MicroInterpreter::output(size_t) { return &tensor; }
void InitializeTarget() {}
const Model* GetModel(const void*) { return nullptr; }
}
__attribute__((destructor)) static void tell() { std::printf("%ld", static_cast<long>(toy_check_code)); }
"""


@pytest.mark.parametrize(
    ("broken", "golden_of", "code"),
    [
        ("ADD", "", 50000),
        ("ALLOCATE", "", 60000),
        ("INVOKE", "", 40000),
        ("", "", 30000),  # the output equals the input
        ("INVOKE", None, 40000),
        ("", None, 0),
    ],
)
def test_the_program_for_tflm_tells_what_failed(
    tmp_path: Path, broken: str, golden_of: str | None, code: int
) -> None:
    folder, _ = toy_bundle(tmp_path, golden_of=golden_of)
    kit = folder / "firmware"
    write_tflm(tmp_path / "tflm")
    (kit / "board.cc").write_text(BOARD)
    sources = sorted(path.name for path in kit.glob("*.c"))
    build(C99, "-c", *sources, where=kit)
    defined = [
        f"-D{step}={'kTfLiteError' if step == broken else 'kTfLiteOk'}"
        for step in ("ADD", "ALLOCATE", "INVOKE")
    ]
    objects = sorted(path.name for path in kit.glob("*.o"))
    given = ("-I", tmp_path / "tflm", *defined, "main_tflm.cc", "board.cc", *objects, "-o", "check")
    build(("g++", "-std=c++17"), *given, where=kit)
    done = subprocess.run([kit / "check"], capture_output=True, text=True, check=False)
    assert (int(done.stdout), done.returncode) == (code, int(code != 0))


def test_without_golden_vectors_the_kit_is_smaller_and_says_why(tmp_path: Path) -> None:
    folder, contract = toy_bundle(tmp_path, golden_of=None)
    kit = folder / "firmware"
    assert not (kit / "self_test.c").exists()
    assert contract.golden is None
    assert contract.notes[0].startswith("no golden vectors")
    readme = (kit / "README.md").read_text()
    assert "no golden vectors" in readme
    assert "| 40000 | " in readme
    assert "self_test" not in readme
    for source in ("model_data.c", "preprocess.c"):
        build(C99, "-c", source, "-o", tmp_path / "object.o", where=kit)


def test_cmake_builds_it(tmp_path: Path) -> None:
    needs("cmake")
    folder, _ = toy_bundle(tmp_path)
    inside = folder / "firmware" / "build"
    build(("cmake",), "-S", folder / "firmware", "-B", inside, where=tmp_path)
    build(("cmake",), "--build", inside, where=tmp_path)
    assert (inside / "libtoy.a").stat().st_size > 0
    check_folder(folder)  # what CMake leaves is no change of the bundle


# A real model, with its own kernels


TFLM_RUN = """
import sys
import numpy as np
from tflite_micro.python.tflite_micro import runtime
model = runtime.Interpreter.from_file(sys.argv[1])
answers = []
for sample in np.load(sys.argv[2]):
    model.set_input(sample[None], 0)
    model.invoke()
    answers.append(np.array(model.get_output(0))[0])
np.save(sys.argv[3], np.stack(answers))
"""


@pytest.mark.slow
def test_keyword_spotting_answers_as_on_a_microcontroller(
    tmp_path: Path, real_data: Path, made_environment: Callable[[str], None]
) -> None:
    made_environment("cortex-m")
    path = real_data / "mlperf-tiny" / "kws_reference_int8.tflite"
    graph = load(path).model.tables("subgraphs")[0]
    given, answer = (graph.tables("tensors")[graph.numbers(side)[0]] for side in ("inputs", "outputs"))
    specs = []
    for about, name in ((given, "features"), (answer, "words")):
        quantization = about.table("quantization")
        assert quantization is not None
        scale = quantization.vector("scale")
        assert scale is not None
        specs.append(
            TensorSpec(
                name=name,
                shape=tuple(about.numbers("shape")),
                dtype="int8",
                scale=float(scale.numbers()[0]),
                zero_point=quantization.numbers("zero_point")[0],
            )
        )
    raw = np.load(real_data / "kws" / "evaluation400.npz")["x"][:8]
    inputs = np.concatenate([fitted(sample, Preprocessing(), specs[0], "kws") for sample in raw])
    np.save(tmp_path / "inputs.npy", inputs)
    command = [
        environment_python("cortex-m"),
        "-c",
        TFLM_RUN,
        path,
        tmp_path / "inputs.npy",
        tmp_path / "out.npy",
    ]
    subprocess.run(command, check=True, capture_output=True)
    report = write_run(
        tmp_path / "run",
        inputs=specs[:1],
        outputs=specs[1:],
        how=Preprocessing(),
        raw=[raw],
        model=path.read_bytes(),
    )
    golden = tmp_path / "run" / "golden" / "int8.tflite.cortex-m.npz"
    with np.load(golden) as archive:
        arrays = dict(archive)
    np.savez(golden, **{**arrays, "output_0": np.load(tmp_path / "out.npy")})
    (row,) = report.results
    contract = make_bundle(tmp_path / "run", report, row, tmp_path / "b", name="toy", version="1")
    kit = tmp_path / "b" / "firmware"
    for source in EVERY_SOURCE:
        build(CORTEX_M4, "-c", source, "-o", tmp_path / "object.o", where=kit)
    assert self_test(kit) == 0
    kinds = [kind_of(code) for code in load(path).model.tables("operator_codes")]
    assert len(contract.operators) == len(kinds)
    assert contract.golden is not None
    assert contract.golden.count == 8


# Kits of the presets


@pytest.mark.parametrize(
    ("device", "core"),
    [
        ("stm32h7", ("-mcpu=cortex-m7",)),
        ("nrf5340", ("-mcpu=cortex-m33",)),
        ("rp2040", ("-mcpu=cortex-m0plus",)),
    ],
)
@pytest.mark.parametrize("compiler", ["gcc", "arm-none-eabi-gcc"])
def test_kits_of_presets_compile_without_a_warning(
    tmp_path: Path, device: str, core: tuple[str, ...], compiler: str
) -> None:
    folder, contract = toy_bundle(tmp_path, device=device, labels=["a", "b", "c", "d", "e"])
    assert (contract.device, contract.emulated) == (device, True)
    assert f"{device} (emulated)" in (folder / "firmware" / "golden_vectors.h").read_text()
    target = core if compiler != "gcc" else ()
    for source in EVERY_SOURCE:
        command = (compiler, "-std=c99", "-O2", "-pedantic", *target, *STRICT)
        build(command, "-c", source, "-o", tmp_path / "object.o", where=folder / "firmware")


# The forms of the kit

ZEPHYR = """
set(CONFIG_EDGEOPT_TOY y)
set(ZEPHYR_CURRENT_MODULE_DIR "{kit}")
function(zephyr_library_named name)
  message("library ${{name}}")
endfunction()
function(zephyr_library_sources)
  foreach(source ${{ARGN}})
    if(NOT EXISTS ${{source}})
      message(FATAL_ERROR "no ${{source}}")
    endif()
    message("source ${{source}}")
  endforeach()
endfunction()
function(zephyr_include_directories folder)
  message("include ${{folder}}")
endfunction()
include("{build}/CMakeLists.txt")
"""


def test_the_kit_is_a_zephyr_module(tmp_path: Path) -> None:
    """As doc/develop/modules.rst of Zephyr asks: zephyr/module.yml, and the build files that it names."""
    needs("cmake")
    kit = toy_bundle(tmp_path)[0] / "firmware"
    module = yaml.safe_load((kit / "zephyr" / "module.yml").read_text())
    assert set(module) == {"name", "build"} and module["name"] == "toy"
    kconfig = (kit / module["build"]["kconfig"]).read_text()
    assert re.findall(r"^config (\w+)\n\tbool \"", kconfig, re.M) == ["EDGEOPT_TOY"]
    script = tmp_path / "zephyr.cmake"
    script.write_text(ZEPHYR.format(kit=kit, build=kit / module["build"]["cmake"]))
    done = subprocess.run(["cmake", "-P", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = done.stderr.split("\n")
    assert sorted(line for line in found if line.startswith("source")) == [
        f"source {kit / name}" for name in EVERY_SOURCE
    ]
    assert f"include {kit / 'src'}" in found and "library edgeopt_toy" in found
    application = (kit / "zephyr" / "check" / "CMakeLists.txt").read_text()
    assert re.search(r"find_package\(Zephyr .*\n.*project\(", application)  # in this order
    assert "EXTRA_ZEPHYR_MODULES" in application and (kit / "zephyr" / "check" / "prj.conf").is_file()
    assert "CONFIG_EDGEOPT_TOY=y" in (kit / "zephyr" / "check" / "prj.conf").read_text()


SKETCH = """
#include <cstdio>
#include <cstdlib>
struct Port {
  void begin(long) {}
  explicit operator bool() const { return true; }
  void print(const char* text) { std::printf("%s", text); }
  void println(long value) { std::printf("%ld\\n", value); std::exit(0); }
};
static Port Serial;
"""


def properties(kit: Path) -> dict[str, str]:
    lines = (kit / "library.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("golden_of", ["", None])
def test_the_kit_is_an_arduino_library(tmp_path: Path, golden_of: str | None) -> None:
    """As the library specification asks; compiled as the IDE does, with src alone on the include path."""
    kit = toy_bundle(tmp_path, golden_of=golden_of)[0] / "firmware"
    fields = properties(kit)
    required = ("name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url")
    assert all(fields[key] for key in (*required, "architectures", "includes"))
    assert (kit / "src" / fields["includes"]).is_file()
    sketches = [path for path in (kit / "examples").rglob("*") if path.is_file()]
    assert (
        [path.name for path in sketches] == [f"{path.parent.name}.ino" for path in sketches] == ["Check.ino"]
    )
    write_tflm(tmp_path / "tflm")
    (tmp_path / "tflm" / "TensorFlowLite.h").write_text("")
    sketch = tmp_path / "sketch"
    sketch.mkdir()
    (sketch / "check.cpp").write_text(
        f"{SKETCH}\n{sketches[0].read_text()}\nint main() {{ setup(); loop(); }}\n"
    )
    board = "ADD kTfLiteOk\n#define ALLOCATE kTfLiteOk\n#define INVOKE kTfLiteOk"
    (sketch / "board.cpp").write_text(f"#define {board}\n" + re.sub(r"__attribute__.*|extern.*", "", BOARD))
    paths = ("-I", kit / "src", "-I", tmp_path / "tflm")
    for source in sorted((kit / "src").glob("*.c")):
        build(C99, "-c", source, where=sketch)
    build(CPP17, "-c", *paths, kit / "src" / "toy_check.cpp", "check.cpp", where=sketch)
    build(("g++", "-std=c++17"), "-c", *paths, "-I", kit, "board.cpp", where=sketch)
    build(("g++",), *sorted(path.name for path in sketch.glob("*.o")), "-o", "run", where=sketch)
    done = subprocess.run([sketch / "run"], capture_output=True, text=True, check=True)
    assert done.stdout == f"toy_check: {30000 if golden_of == '' else 0}\n"  # the output equals the input


@pytest.mark.parametrize("name", [*HOSTILE, "$(shell,touch x)", "arduino", "a\nname=b"])
def test_forms_whatever_the_model_is_called(tmp_path: Path, name: str) -> None:
    kit = toy_bundle(tmp_path, name)[0] / "firmware"
    fields = properties(kit)
    assert re.fullmatch(r"edgeopt_[a-z0-9_]{1,54}", fields["name"])
    assert fields["version"] == "1.0.0"
    assert len((kit / "library.properties").read_text().splitlines()) == len(fields) == 10
    # A macro in Kconfig would run a command.
    assert "$" not in (kit / "zephyr" / "Kconfig").read_text()
    assert yaml.safe_load((kit / "zephyr" / "module.yml").read_text())["name"] == identifier(name)


@pytest.mark.parametrize(
    ("version", "library"), [("1.2", "1.2"), ("1.2.3", "1.2.3"), ("2026-01-01-ab", "0.0.0")]
)
def test_a_library_has_a_version_that_its_manager_accepts(tmp_path: Path, version: str, library: str) -> None:
    report = write_run(tmp_path / "run")
    make_bundle(tmp_path / "run", report, report.results[0], tmp_path / "b", name="toy", version=version)
    fields = properties(tmp_path / "b" / "firmware")
    assert fields["version"] == library and version in fields["paragraph"]
