"""Archives of torch whose expressions, targets, objects or operators do more than compute."""

import io
import json
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.case import SECRET, Case

HARMLESS = """
import sys, torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__(); self.fc = torch.nn.Linear(4, 3)
    def forward(self, x):
        return self.fc(x)
net = Net().eval()
free = ({0: torch.export.Dim("batch", min=1, max=64)},)
torch.export.save(torch.export.export(net, (torch.zeros(2, 4),), dynamic_shapes=free), "net.pt2")
class Saves(torch.nn.Module):
    def forward(self, x):
        torch.save(x, sys_mark + "/saved")
        return x * 2
class Maps(torch.nn.Module):
    def forward(self, x):
        return x * 2 + torch.from_file(secret, False, 8, dtype=torch.uint8).float().mean()
class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__(); self.inner = Saves()
    def forward(self, x):
        return self.inner(x)
class Loading(torch.nn.Module):
    def forward(self, x):
        return x * 2
    @torch.jit.export
    def __getstate__(self):
        return (self.training,)
    @torch.jit.export
    def __setstate__(self, state: tuple[bool]):
        torch.save(torch.zeros(1), MARK + "/loaded")
        self.training = state[0]
"""


def build(folder: Path, mark: Path) -> Iterator[Case]:
    """Build the files with torch in a process of its own, and change the archives here."""
    script = HARMLESS.replace("sys_mark", repr(str(mark))).replace("MARK", repr(str(mark)))
    script = script.replace("secret", repr(str(SECRET)))
    script += """
import warnings; warnings.simplefilter("ignore")
for name, module in (("saves", Saves()), ("maps", Maps()), ("nested", Outer()), ("loading", Loading())):
    scripted = torch.jit.script(module); scripted.save(name + ".pt")
    if name in ("saves", "maps"):
        scripted._save_for_lite_interpreter(name + ".ptl")
torch.jit.script(net).save("plain.pt")
"""
    # From a file: TorchScript needs the sources of the modules.
    (folder / "make.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "make.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    yield Case(folder / "saves.pt", "aten::save")
    yield Case(folder / "maps.pt", "aten::from_file")
    yield Case(folder / "nested.pt", "aten::save")
    yield Case(folder / "loading.pt", "aten::save")
    yield Case(folder / "saves.ptl", "aten::save")
    yield Case(folder / "maps.ptl", "aten::from_file")

    def edited(source: str, name: str, edit: Callable[[str, bytes], bytes], **more: bytes) -> Path:
        with zipfile.ZipFile(folder / source) as old, zipfile.ZipFile(folder / name, "w") as new:
            added = {f"{Path(source).stem}/{member}": content for member, content in more.items()}
            for member in old.namelist():
                if member not in added:
                    new.writestr(member, edit(member, old.read(member)))
            for member, content in added.items():
                new.writestr(member, content)
        return folder / name

    def program(name: str, old: str, new: str) -> Path:
        """The exported program with the text that matches ``old`` replaced."""

        def edit(member: str, content: bytes) -> bytes:
            text = re.sub(old, lambda _: new, content.decode()) if "/models/" in member else ""
            return text.encode() or content

        return edited("net.pt2", name, edit)

    def unchanged(member: str, content: bytes) -> bytes:
        return content

    touch = f"__import__('os').system('touch {mark}/pt2')"
    expressions = {
        "import": touch,
        "attribute": "Symbol.__class__",
        "lambda": f"(lambda: {touch})()",
        "open": f"open('{mark}/opened', 'w')",
        "getattr": "getattr(Symbol, 's0')",
    }
    for name, expression in expressions.items():
        text = f'"expr_str": {json.dumps(expression)}'
        yield Case(program(f"expression-{name}.pt2", '"expr_str": "[^"]*"', text), "expr_str")
    targets = {
        "os": "os.system",
        "builtin": "builtins.exec",
        "hub": "torch.hub.load",
        "library": "torch.ops.load_library",
        "class": "torch.ops.aten.__class__.mro",
        "file": "torch.ops.aten.from_file.default",
        "save": "torch.ops.aten.save.default",
        "dump": "torch.ops.debugprims.load_tensor.default",
        "network": "torch.ops._c10d_functional.isend.default",
        "call": "_operator.call",
    }
    for name, target in targets.items():
        yield Case(program(f"target-{name}.pt2", r"torch\.ops\.aten\.linear\.default", target), target)
    code = pickle.dumps(_Touch(str(mark / "unpickled")))
    for name, record in {
        "opaque": "data/constants/opaque_obj_0",
        "custom": "data/constants/custom_obj_0",
        "compiled": "data/aotinductor/model/evil.so",
    }.items():
        yield Case(edited("net.pt2", f"{name}.pt2", unchanged, **{record: code}), record)
    config = json.dumps({"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}).encode()
    pickled = {"data/weights/weights_config.json": config, "data/weights/weight_0": _zipped(code)}
    yield Case(edited("net.pt2", "pickled-weight.pt2", unchanged, **pickled), "open in")
    inputs = {"data/sample_inputs/model.pt": code, "data/weights/weight_9.pt": _zipped(code)}
    for number, (record, content) in enumerate(inputs.items()):
        yield Case(edited("net.pt2", f"pickle-{number}.pt2", unchanged, **{record: content}), "open in")
    twice = edited("net.pt2", "twice.pt2", unchanged, ARCHIVE_format=b"pt2")
    yield Case(twice, "two records of the same name")

    lines = {
        "method": f'_0 = (x).save("{mark}/method")',
        "alias": f't = torch\n    t.save(x, "{mark}/alias")',
        "operator": f'ops.aten.save(x, "{mark}/operator")',
        "network": "ops.c10d.send([x], 0, 0)",
        "escaped": f'getattr(torch, "sa\\x76e")(x, "{mark}/escaped")',
    }
    with zipfile.ZipFile(folder / "plain.pt") as plain:
        module = next(
            name for name in plain.namelist() if name.endswith(".py") and b"linear" in plain.read(name)
        )
    for name, line in lines.items():
        statement = f"    {line}\n    ".encode()

        def edit(member: str, content: bytes, statement: bytes = statement) -> bytes:
            return content.replace(b"    ", statement, 1) if member == module else content

        word = {"network": "c10d::send", "escaped": "escapes"}.get(name, "aten::save")
        yield Case(edited("plain.pt", f"script-{name}.pt", edit), word)


def _zipped(content: bytes) -> bytes:
    """A checkpoint of torch >= 1.6 with this pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return stream.getvalue()


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))
