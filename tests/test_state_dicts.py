"""Weights in the checkpoints of training scripts: which set is used, under which names, and what is said."""

from collections.abc import Callable
from typing import Any

import pytest

from edgeopt.errors import StageError
from edgeopt.formats.torch.files import state_dicts

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


def network(seed: int = 0) -> Any:
    """Its own names begin with ``model.``, as a prefix of Lightning does."""
    torch.manual_seed(seed)
    net = torch.nn.Module()
    net.model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    net.fc = torch.nn.Linear(4, 3)
    return net


TRAINED, COPY = network(0).state_dict(), network(1).state_dict()


def behind(prefix: str, weights: Any = TRAINED) -> dict[str, Any]:
    return {prefix + name: value for name, value in weights.items()}


def used(content: object, key: str | None = None) -> tuple[dict[str, Any], list[str]]:
    fitting = state_dicts.select(content, network().state_dict(), key, "w.pt")
    return fitting[0].tensors, state_dicts.remarks(fitting, "w.pt")


def is_trained(weights: dict[str, Any], expected: Any = TRAINED) -> bool:
    return weights.keys() == expected.keys() and all(torch.equal(weights[n], expected[n]) for n in expected)


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "model.", "net.", "_orig_mod.", "module._orig_mod.model.", "_orig_mod.module."),
        *("backbone.net.", "anything.", "_fsdp_wrapped_module.model."),
    ],
)
def test_any_prefix_is_removed_that_makes_all_names_fit(prefix: str) -> None:
    weights, notes = used(behind(prefix))
    assert is_trained(weights)
    assert notes == [
        f"w.pt: '{prefix}model.0.weight' is taken for the model's 'model.0.weight', and other names alike"
    ]


@pytest.mark.parametrize("inside", ["model.module.", "model._orig_mod."])
def test_wrappers_of_a_part_are_removed_inside_the_names(inside: str) -> None:
    content = {name.replace("model.", inside): value for name, value in TRAINED.items()}
    assert is_trained(used(content)[0])


def test_a_prefix_that_the_file_lacks_is_added() -> None:
    inner = {n.removeprefix("model."): v for n, v in TRAINED.items() if n.startswith("model.")}
    wanted = {n: v for n, v in TRAINED.items() if n.startswith("model.")}
    (weights, *_) = state_dicts.select(inner, wanted, None, "w.pt")
    assert is_trained(weights.tensors, wanted)


def test_names_that_fit_are_left_alone() -> None:
    assert used(TRAINED)[1] == used({"state_dict": TRAINED, "epoch": 3})[1] == []


def test_parts_of_the_training_are_left_out_and_named() -> None:
    content = {"state_dict": behind("model.") | {"criterion.weight": torch.ones(3)}}
    weights, notes = used(content)
    assert is_trained(weights)
    assert notes[1] == "w.pt: not part of the model, and left out: 'criterion.weight'"
    assert is_trained(used(behind("module.") | {"n_averaged": torch.tensor(3)})[0])


SEVERAL: dict[str, tuple[Any, str, str]] = {
    "ema": ({"ema": COPY, "model": TRAINED}, "model", "ema"),
    "nested": ({"model": TRAINED, "ema": {"module": COPY, "decay": 0.9}}, "model", "ema.module"),
    "flat": (behind("ema.", COPY) | behind("student."), "student", "ema"),
    "lightning": (
        {"state_dict": behind("model_ema.module.", COPY) | behind("model.")},
        "state_dict.model",
        "state_dict.model_ema",
    ),
    "modules": ({"net": network(0), "teacher": network(1)}, "net", "teacher"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_sets_one_is_used_and_a_key_chooses_another(name: str) -> None:
    content, first, other = SEVERAL[name]
    weights, notes = used(content)
    assert is_trained(weights)
    assert (
        f"holds weights under {first!r}, which are used, and under {other!r}: model.weights_key" in notes[-1]
    )
    assert is_trained(used(content, other)[0], COPY)
    assert is_trained(used(content, first)[0])
    assert is_trained(used(content, other.removesuffix(".module"))[0], COPY)


def test_the_set_that_fits_is_used_whatever_its_key() -> None:
    content = {"model": {"other.weight": torch.ones(2)}, "step": torch.tensor(3), "mine": TRAINED}
    assert is_trained(used(content)[0])


def lacking(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "fc.bias"}


REFUSED: dict[str, tuple[Callable[[], object], str | None, list[str]]] = {
    "missing": (lambda: lacking(TRAINED), None, ["missing: fc.bias"]),
    "of the best set": (
        lambda: {"model": {"x": torch.ones(1)}, "ema": lacking(COPY)},
        None,
        ["'ema' of w.pt does not match the model", "missing: fc.bias"],
    ),
    "unexpected": (
        lambda: behind("model.") | {"model.loss.weight": torch.ones(1)},
        None,
        ["unexpected: model.loss.weight"],
    ),
    "shape": (
        lambda: TRAINED | {"fc.bias": torch.ones(5)},
        None,
        ["fc.bias is [5] in the file and [3] in the model"],
    ),
    "key": (
        lambda: {"model": TRAINED, "ema": COPY},
        "emma",
        ["no weights under the key 'emma'", "did you mean 'ema'", "the file has 'model', 'ema'"],
    ),
    "nothing": (lambda: {"epoch": 3}, None, ["a dictionary with the keys epoch, but no weights"]),
    "empty": (dict, None, ["an empty dictionary, but no weights"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_do_not_fit_are_named(name: str) -> None:
    content, key, parts = REFUSED[name]
    with pytest.raises(StageError) as caught:
        used(content(), key)
    assert all(part in str(caught.value) for part in parts), caught.value
