"""What the model card says of the files beside it, and of how they are used."""

from collections.abc import Collection

from edgeopt.publish.contract import Contract
from edgeopt.publish.kit.c_names import identifier, one_line

PARTS = {
    "manifest.json": "inputs, outputs, preprocessing, measurements and digests, for programs",
    "labels.txt": "class names, in the order of the outputs",
    "golden": "samples with their answers, as .npy: `raw_…` before preprocessing, `input_…`, `output_…`",
    "firmware": "the model, preprocessing and a self test as C and C++; its README.md tells how to use it",
    "example": "programs that load the model, run it and check the golden answers",
}
ADDED = {
    "recipe.yaml": "what `edgeopt optimize` carried out to make the model",
    "provenance.intoto.json": "what it was made of, with what, and by whom (in-toto, SLSA)",
    "bom.cdx.json": "the software it was made with (CycloneDX)",
    "model.sig": "signature of this folder, where somebody signed it: `edgeopt artifacts verify`",
}
"""What a release adds to a bundle."""


def contents(contract: Contract, there: Collection[str]) -> str:
    """The section about the folder; ``there``: what has been written to it, with ``/``."""
    listed = {name: what for name, what in PARTS.items() if name in there or name == "manifest.json"} | ADDED
    lines = ["## In this folder", "", f"- `{contract.file.name}`: the model"]
    lines += [
        f"- `{name}{'/' if name in ('golden', 'firmware', 'example') else ''}`: {what}"
        for name, what in listed.items()
    ]
    if "firmware" in there:
        lines += ["", *_firmware(identifier(contract.name), "firmware/self_test.c" in there)]
    if "example/run_model.py" in there:
        lines += ["", "`python example/run_model.py` runs it; exit code 0: the golden answers came out."]
    return "\n".join(lines)


def golden(contract: Contract) -> str:
    """Whose answers the golden vectors hold; empty if there are none."""
    about = contract.golden
    if about is None:
        return ""
    where = f"{one_line(about.device)}{' (emulated)' if about.emulated else ''}"
    runtime = one_line(about.runtime) or "a runtime"
    return f"{about.count} golden samples with the answers of {runtime} on {where}."


def _firmware(p: str, tested: bool) -> list[str]:
    steps = [
        f"Add it to the build: `add_subdirectory(firmware)` and link `{p}` and TensorFlow Lite Micro, or "
        "compile `firmware/*.c` (C99, without `-ffast-math`).",
        f"Prepare a sample: `{p}_preprocess_0_float(raw, inputs.input_0)`; `preprocess.h` has the others.",
        "Run it: `firmware/main_tflm.cc` is a whole program of resolver, arena and interpreter.",
    ]
    if tested:
        steps.append(
            f"Test it on the board: `{p}_self_test(invoke)` returns 0, or step × 10000 + vector × 100 + "
            "tensor of what failed first. Step 1: preprocessing (float), 2: preprocessing (fixed), 3: an "
            "output is too far off, 4: the run itself; `main_tflm.cc` has 5 (operators) and 6 (arena), too."
        )
    return ["On a microcontroller:", "", *(f"{number}. {step}" for number, step in enumerate(steps, 1))]
