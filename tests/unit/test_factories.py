"""What builds the network of a checkpoint is found by the names and shapes of its weights; no code is run."""

import pickle
import zipfile
from pathlib import Path

import pytest

from edgeopt.formats.source import weight_shapes
from edgeopt.recipe.starter.factories import candidates
from edgeopt.recipe.starter.networks import network_named
from edgeopt.recipe.starter.shapes import first_weight, proposed_shape

NETS = """
import torch
from torch import nn

raise SystemExit("this code is not run")


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3)


class Small(Base):
    def __init__(self, classes=10):
        super().__init__()
        self.relu = nn.ReLU()
        self.body = self._body([1])
        self.head = nn.Linear(8, classes)


class Large(Base):
    def __init__(self, classes=100):
        super().__init__()
        self.body = nn.Sequential()
        self.head = nn.Linear(8, classes)


class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4)


def thin():
    return Small()


def deep2():
    net = Deep([2, 2])
    return net


def deep3():
    return Deep(blocks=[3, 2])


def mlp():
    return nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))


class Deep(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.one = self._make(blocks[0])
        self.two = self._make(blocks[1])


def build_anything(name):
    return registry[name]
"""
SMALL = {
    "stem.weight": (8, 3, 3, 3),
    "stem.bias": (8,),
    "body.0.conv.weight": (8, 8, 3, 3),
    "body.0.bn.num_batches_tracked": (),
    "head.weight": (10, 8),
    "head.bias": (10,),
}
MLP = {"0.weight": (4, 16), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)}


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "broken.py").write_text("def (:")
    return tmp_path


def _names(folder: Path, weights: dict[str, tuple[int, ...]]) -> list[str]:
    return [str(each).partition("nets.py:")[2] for each in candidates(folder, weights=weights)]


def test_the_network_whose_names_and_shapes_fit_comes_first(nets: Path) -> None:
    first, second, third, _ = _names(nets, SMALL)
    assert {first, second} == {"Small (3 of 3 parts fit)", "thin (3 of 3 parts fit)"}
    assert third == "Large (2 of 3 parts fit)"  # its head has 100 rows
    wrapped = {f"module.{name}": shape for name, shape in SMALL.items()}
    assert _names(nets, wrapped) == _names(nets, SMALL)
    assert _names(nets, SMALL | {"head.weight": (100, 8)})[0] == "Large (3 of 3 parts fit)"
    assert _names(nets, MLP)[0] == "mlp (2 of 2 parts fit)"
    # Those of which nothing fits are not named.
    assert not any("Other" in name for name in _names(nets, SMALL))
    assert [name for name in _names(nets, {"x.weight": (2, 2)}) if "fit" in name] == []
    # Without weights, those that can be called come first.
    assert all("fit" not in name for name in _names(nets, {}))


def test_the_number_of_blocks_tells_functions_apart(nets: Path) -> None:
    for counts, best in (((3, 2), "deep3"), ((2, 2), "deep2")):
        weights = {
            f"{part}.{at}.conv.weight": (4, 4, 3, 3)
            for part, count in zip(("one", "two"), counts, strict=True)
            for at in range(count)
        }
        assert _names(nets, weights)[0] == f"{best} (2 of 2 parts fit)"


def test_the_input_follows_from_the_first_weight(nets: Path) -> None:
    mlp = network_named(nets / "nets.py", "mlp")
    found = first_weight(MLP, mlp)
    assert found is not None and found.known == (1, 16) and str(found) == "0.weight [4, 16]"
    found = first_weight(SMALL)
    assert found is not None and found.known == () and proposed_shape((), None, found) == "1,3,H,W"
    # safetensors sorts names: there, only the code knows which is the first.
    mixed = {"head.bias": (10,), "head.weight": (10, 8), "stem.weight": (8, 1, 3, 3)}
    assert first_weight(mixed) is None
    found = first_weight(mixed, network_named(nets / "nets.py", "Small"))
    assert found is not None and found.shape == (1, 1, "H", "W")
    # Neither the rows of an embedding nor the weights of a recurrent layer are an input's size.
    assert first_weight({"words.weight": (1000, 8), "fc.weight": (2, 8), "fc.bias": (2,)}) is None
    assert first_weight({"rnn.weight_ih_l0": (32, 8)}) is None
    assert first_weight({}) is None and network_named(nets / "nets.py", "build_anything") is None


def test_shapes_are_read_from_checkpoints_without_torch(tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("this code is not run",)

    def checkpoint(content: bytes) -> Path:
        path = tmp_path / "net.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/data.pkl", content)
            archive.writestr("net/version", "3")
        return path

    # {"epoch": 3, "net": OrderedDict(fc.weight=tensor of shape [2, 4])}, as torch.save writes it.
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x08tQK\x00K\x02K\x04\x86K\x04K\x01\x86\x89"
        b"ccollections\nOrderedDict\n)RtR"
    )
    content = (
        b"\x80\x02}(X\x05\x00\x00\x00epochK\x03X\x03\x00\x00\x00netccollections\nOrderedDict\n)R"
        b"X\x09\x00\x00\x00fc.weight" + tensor + b"s}X\x09\x00\x00\x00_metadata}sbu."
    )
    assert weight_shapes(checkpoint(content)) == {"fc.weight": (2, 4)}
    # What loading would run is not even looked at.
    assert weight_shapes(checkpoint(pickle.dumps({"fc.weight": Call()}, 2))) == {}
