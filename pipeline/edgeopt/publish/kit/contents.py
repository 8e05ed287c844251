"""The section of the model card on the files of the bundle and their use."""

from collections.abc import Collection

from edgeopt.publish.contract import Contract
from edgeopt.publish.kit.c_names import identifier, one_line

PARTS = {
    "manifest.json": "inputs, outputs, preprocessing, measurements and digests, machine-readable",
    "labels.txt": "class names, in the order of the outputs",
    "golden": "samples with their outputs, as .npy: `raw_…` before preprocessing, `input_…`, `output_…`",
    "firmware": "the model, preprocessing and a self-test as C and C++; see its README.md",
    "example": "programs that load the model, run it and check its outputs; subfolders: for other runtimes",
}
ADDED = {
    "recipe.yaml": "the recipe that `edgeopt optimize` ran to build the model",
    "provenance.intoto.json": "source model, datasets, tools and publisher (in-toto, SLSA)",
    "bom.cdx.json": "the software that built it (CycloneDX)",
    "model.sig": "signature of this folder, if it is signed: `edgeopt artifacts verify`",
}
"""Files that a release adds to a bundle."""


def contents(contract: Contract, present: Collection[str]) -> str:
    """The section on the folder; ``present``: the relative paths of its files so far, with ``/``."""
    listed = {
        name: what for name, what in PARTS.items() if name in present or name == "manifest.json"
    } | ADDED
    others = ", ".join(f"`{part.name}`" for part in contract.model_files[1:6])
    more = f" and {len(contract.model_files) - 6} more" if len(contract.model_files) > 6 else ""
    lines = ["## In this folder", "", f"- `{contract.file.name}`: the model"]
    if others:
        lines[-1] += f", with {others}{more}"
    lines += [
        f"- `{name}{'/' if name in ('golden', 'firmware', 'example') else ''}`: {what}"
        for name, what in listed.items()
    ]
    if "firmware" in present:
        lines += ["", *_firmware(identifier(contract.name), "firmware/self_test.c" in present)]
    if "example/run_model.py" in present:
        lines += ["", "`python example/run_model.py` runs it; exit code 0: the golden outputs match."]
    return "\n".join(lines)


def golden(contract: Contract) -> str:
    """The origin of the golden outputs; empty if there are none."""
    about = contract.golden
    if about is None:
        return ""
    where = f"{one_line(about.device)}{' (emulated)' if about.emulated else ''}"
    runtime = one_line(about.runtime) or "a runtime"
    return f"{about.count} golden samples with the outputs of {runtime} on {where}."


def _firmware(p: str, tested: bool) -> list[str]:
    steps = [
        f"Add it to the build: `add_subdirectory(firmware)` and link `{p}` and TensorFlow Lite Micro, or "
        "compile `firmware/*.c` (C99, without `-ffast-math`).",
        f"Prepare a sample: `{p}_preprocess_0_float(raw, inputs.input_0)`; `preprocess.h` has the others.",
        "Run it: `firmware/main_tflm.cc` is a complete program with resolver, arena and interpreter.",
    ]
    if tested:
        steps.append(
            f"Test it on the board: `{p}_self_test(invoke)` returns 0, or step × 10000 + vector × 100 + "
            "tensor of the first failure. Step 1: preprocessing (float), 2: preprocessing (fixed), 3: an "
            "output exceeds the tolerance, 4: the run itself; `main_tflm.cc` adds 5 (operators), 6 (arena)."
        )
    return ["On a microcontroller:", "", *(f"{number}. {step}" for number, step in enumerate(steps, 1))]
