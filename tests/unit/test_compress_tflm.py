"""Weights in fewer bits: what is written is read back, sizes, refusals, and the bits of coarser weights."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeopt.commands.plan import plan as make_plan
from edgeopt.devices.device import load_device
from edgeopt.devices.lint import lint
from edgeopt.errors import RecipeError, StageError
from edgeopt.formats.known import format_named
from edgeopt.formats.tflite.files import huffman, value_tables, weight_coding
from edgeopt.formats.tflite.files.graphs import graphs_of
from edgeopt.formats.tflite.files.model_file import parse
from edgeopt.formats.tflite.files.slimming import slimmed
from edgeopt.formats.tflite.quantize.rate_distortion import Choice, PricedRounding, adapted, code_bits
from edgeopt.model import Model
from edgeopt.plugin import Context
from edgeopt.recipe.resolve import load_recipe
from edgeopt.recipe.searching import DIMENSIONS
from edgeopt.search.space import options_of, space_of
from edgeopt.stages.compress_tflm import CompressTflm
from toy_layers import SHAPES, few_values, two_layers

CODINGS: tuple[weight_coding.Coding, ...] = ("tables", "huffman")
SEVEN = (0, 20, -20, 40, -40, 60, -60)


def packed(content: bytes, *codings: weight_coding.Coding) -> tuple[bytes, list[weight_coding.Packed | None]]:
    file = parse(content, "toy")
    layers = weight_coding.layers_of(graphs_of(file)[0])
    forms = weight_coding.packed(layers, codings)
    pairs = zip(layers, forms, strict=True)
    return weight_coding.with_packed(file, {layer.operator: form for layer, form in pairs if form}), forms


def weights(content: bytes) -> list[np.ndarray]:
    return [layer.values for layer in weight_coding.layers_of(graphs_of(parse(content, "toy"))[0])]


def test_huffman_codes_are_optimal_and_read_back() -> None:
    values = np.repeat(np.arange(-3, 4, dtype=np.int8), [1, 2, 4, 64, 8, 4, 1])
    np.random.default_rng(0).shuffle(values)
    counts = Counter(values.tolist())
    code = huffman.code_of(huffman.lengths_of(counts))
    assert sum(2.0**-length for length in code.lengths.values()) == 1
    # 64 of 84 values in one bit; the entropy is 1.43 bits, those of the code 1.55.
    assert (
        code.lengths[0] == 1
        and code_bits(values) == sum(counts[v] * n for v, n in code.lengths.items()) == 130
    )
    first, tables = code.tables
    stream = huffman.encoded(values, code)
    assert len(stream) == 20 and len(stream) % 4 == 0  # with what a decoder may read ahead
    assert np.array_equal(huffman.decoded(stream, first, tables, len(values), "toy"), values)


@pytest.mark.parametrize("spread", [0.5, 4.0, 40.0])
def test_tables_are_small_however_many_values_there_are(spread: float) -> None:
    values = np.random.default_rng(1).normal(0, spread, 20_000).round().clip(-127, 127).astype(np.int8)
    code = huffman.code_of(huffman.lengths_of(Counter(values.tolist())))
    first, tables = code.tables
    # At most two entries for each value, as a binary tree has; one table for all bits had thousands.
    assert len(code.lengths) <= len(tables) // 2 <= 2 * len(code.lengths)
    decoded = huffman.decoded(huffman.encoded(values, code), first, tables, len(values), "toy")
    assert np.array_equal(decoded, values)


@pytest.mark.parametrize("bits", value_tables.BITS)
@pytest.mark.parametrize("axis", [None, 0, 3])
def test_indices_of_all_widths_are_read_back(bits: int, axis: int | None) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (256, 3, 2, 256)).astype(np.int8) - 64
    coded = value_tables.coded(values, axis)
    assert coded is not None and coded.bits == bits and len(coded.indices) == values.size * bits // 8
    assert len(coded.tables) == (1 if axis is None else values.shape[axis]) * coded.stride
    assert np.array_equal(value_tables.decoded(*coded, values.shape, "toy"), values)


def test_more_than_128_values_have_no_table() -> None:
    assert value_tables.coded(np.arange(-100, 100, dtype=np.int8), None) is None


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_file_is_expanded_to_the_same_weights(per_channel: bool) -> None:
    before = two_layers(few_values(SEVEN), per_channel=per_channel)
    sizes = {"plain": len(slimmed(parse(before, "toy")))}
    for coding in CODINGS:
        content, _ = packed(before, coding)
        sizes[coding] = len(slimmed(parse(content, "toy")))
        after = weights(weight_coding.expanded(parse(content, "toy")))
        assert all(np.array_equal(old, new) for old, new in zip(weights(before), after, strict=True))
    # 4,608 weights of 7 values in 3 bits, or in 1.94 of a Huffman code; a table of values for each scale.
    tables = 7 * (32 if per_channel else 1)
    assert sizes["plain"] - sizes["tables"] == pytest.approx(4608 - 1728 - tables - 150, abs=70)
    # The 288 depthwise weights share the code, and need 72 B instead.
    assert sizes["plain"] - sizes["huffman"] == pytest.approx(4608 - 1120 - 40 + 288 - 72 - 260, abs=70)


def test_one_table_for_each_scale_because_kernels_expect_it() -> None:
    _, forms = packed(two_layers(few_values(SEVEN), per_channel=True), "tables")
    assert forms[0] is not None
    kind, version, _, _, inner, parameter, stride = forms[0].header[:7]
    assert (kind, version, inner, parameter >> 4, parameter & 7, stride) == (0, 1, 1, 0, 3, 7)
    assert len(forms[0].header) == 16 + 32 * 7
    _, forms = packed(two_layers(few_values(SEVEN)), "tables")
    assert forms[0] is not None and forms[0].header[5] >> 4 == value_tables.WHOLE
    assert len(forms[0].header) == 16 + 7


def test_layers_share_a_code_where_that_is_smaller() -> None:
    layers = weight_coding.layers_of(graphs_of(parse(two_layers(few_values(SEVEN)), "toy"))[0])
    larger = [layers[0], layers[0]._replace(values=few_values(SEVEN, 5)[0])]
    same = weight_coding.packed(larger, ["huffman"])
    assert same[0] is not None and same[1] is not None and same[0].header == same[1].header
    others = np.random.default_rng(0).integers(-120, 120, SHAPES[0]).astype(np.int8) // 16 * 16 + 3
    apart = weight_coding.packed([layers[0], layers[0]._replace(values=others)], ["huffman"])
    assert apart[0] is not None and apart[1] is not None and apart[0].header != apart[1].header


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (0, b"\x07", r"weights in a coding .* type 7, version 1.1"),
        (1, b"\x02", r"weights in a coding .* type 1, version 2.1"),
        (16, b"\x00\x7f", "its compressed weights are incomplete"),
    ],
)
def test_damaged_codes_are_told(at: int, data: bytes, words: str) -> None:
    content, forms = packed(two_layers(few_values(SEVEN)), "huffman")
    assert forms[0] is not None
    header = forms[0].header
    damaged = content.replace(header, header[:at] + data + header[at + len(data) :])
    with pytest.raises(StageError, match=words):
        weight_coding.expanded(parse(damaged, "toy"))


@pytest.mark.parametrize("coding", CODINGS)
def test_no_damage_raises_anything_but_a_message(coding: weight_coding.Coding, tmp_path: Path) -> None:
    content, _ = packed(two_layers(few_values(SEVEN)), coding)
    random = np.random.default_rng(5)
    path, told = tmp_path / "m.tflite", 0
    for _ in range(60):
        damaged = bytearray(content)
        for at in random.integers(8, len(damaged), random.integers(1, 4)):
            damaged[at] = random.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            format_named("tflite").breakdown(path)
            weight_coding.expanded(parse(bytes(damaged), "toy"))
        except StageError:
            told += 1
    assert told > 2


def test_lint_names_the_runtime_and_the_size_counts_the_codes(tmp_path: Path) -> None:
    plain, coded = tmp_path / "plain.tflite", tmp_path / "coded.tflite"
    plain.write_bytes(two_layers(few_values(SEVEN)))
    coded.write_bytes(packed(plain.read_bytes(), "huffman")[0])
    (finding,) = lint(coded, load_device("host"), "tflite")
    assert str(finding) == (
        "[runtime] only tflm runs it, because an operator decodes its weights; host has litert; use a device "
        "that has it, such as cortex-m, or the file from before it was compressed"
    )
    assert not lint(coded, load_device("cortex-m"), "tflite") and not lint(
        plain, load_device("host"), "tflite"
    )
    before, after = (format_named("tflite").breakdown(file) for file in (plain, coded))
    assert before.parameters == after.parameters == 4608 + 288 + 64
    assert (before.macs, before.sparsity) == (after.macs, after.sparsity)
    layer = next(each for each in after.layers if each.kind == "CONV_2D")
    assert layer.weight_bytes == pytest.approx(1140 + 128, abs=60) and after.parts["weights"] < 1700


def test_a_stage_keeps_files_that_do_not_get_smaller_from_being_built(tmp_path: Path) -> None:
    full = [np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8) for shape in SHAPES]
    (tmp_path / "m.tflite").write_bytes(two_layers(full))
    with pytest.raises(StageError, match=r"none of its 2 layers with int8 weights .* gets smaller") as raised:
        CompressTflm().run(Model(format="tflite", path=tmp_path / "m.tflite"), Context(tmp_path, None, print))
    assert raised.value.fix == "give the weights fewer values first, with 'coarsen: {bits: 4}'"


def test_the_price_of_a_bit_moves_weights_to_shorter_codes() -> None:
    random = np.random.default_rng(2)
    inputs = random.normal(size=(400, 24)) @ random.normal(size=(24, 24))
    moments = (inputs.T @ inputs / 400)[np.newaxis]
    rows = random.laplace(size=(16, 24))
    rounding, step = PricedRounding(moments), 0.3
    errors, bits = [], []
    for price in (0.0, step**2 * rounding.curvature, 5 * step**2 * rounding.curvature):
        change = rounding.coarse(rows, Choice(step, price)) * step - rows
        errors.append(float(np.mean((inputs @ change.T) ** 2)))
        bits.append(code_bits(rounding.coarse(rows, Choice(step, price))) / rows.size)
    nearest = np.rint(rows / step)
    assert errors[0] < 0.5 * float(np.mean((inputs @ (nearest * step - rows).T) ** 2))
    assert bits[0] > bits[1] + 0.5 > bits[2] + 1.0 and errors[0] < errors[1] < errors[2]


def test_settled_weights_have_the_best_value_given_all_others() -> None:
    random = np.random.default_rng(4)
    inputs = random.normal(size=(400, 24)) @ random.normal(size=(24, 24))
    moments = (inputs.T @ inputs / 400)[np.newaxis]
    rows = random.laplace(size=(16, 24))
    rounding, step = PricedRounding(moments), 0.6
    choice = Choice(step, step**2 * rounding.curvature)
    greedy = rounding.coarse(rows, choice, rounds=3)
    settled = rounding.settled(rows, greedy, choice)
    before, after = (float(np.mean((inputs @ (each * step - rows).T) ** 2)) for each in (greedy, settled))
    assert after < 0.85 * before and code_bits(settled) < 1.03 * code_bits(greedy)
    assert np.array_equal(rounding.settled(rows, settled, choice), settled)
    three = Choice(step, 0.0, np.array([-2.0, 0.0, 2.0]))
    assert {*np.unique(rounding.settled(rows, rounding.coarse(rows, three), three))} == {-2, 0, 2}


def test_weights_adapt_to_inputs_that_have_changed() -> None:
    random = np.random.default_rng(3)
    former = random.normal(size=(600, 12))
    changed = former * 0.9 + 0.02 * random.normal(size=(600, 12))
    rows = random.normal(size=(4, 12))
    own, cross = ((each.T @ changed / 600)[np.newaxis] for each in (changed, former))
    new = adapted(rows, own, cross)
    before, after = (np.mean((former @ rows.T - changed @ each.T) ** 2) for each in (rows, new))
    assert after < 0.1 * before
    assert np.allclose(adapted(rows, own, own), rows)


CODED = "{coded: {compress: tflm, coarsen: {bits: 3}, quantize: int8}}"


def test_a_plan_has_the_steps_in_order_and_leaves_out_devices_by_name(
    write_recipe: Callable[..., Path],
) -> None:
    recipe = write_recipe(optimize=CODED, formats="[tflite]", devices="[host, cortex-m]")
    plan = make_plan(recipe)
    coded = next(branch for branch in plan.branches if branch.variant == "coded")
    assert coded.names[-4:] == ("quantize_tflite", "coarsen_tflite", "compress_tflm", "slim_tflite")
    assert [device.name for device in coded.devices] == ["cortex-m"]
    note = "coded.tflite is not measured on host: only tflm runs what compress_tflm makes"
    assert [each for each in plan.notes if "compress_tflm" in each] == [note]


def test_a_plan_without_the_runtime_names_a_device_that_has_it(write_recipe: Callable[..., Path]) -> None:
    plan = make_plan(write_recipe(optimize=CODED, formats="[tflite]", devices="[host]"))
    (missing,) = plan.impossible
    assert missing.reason == "only tflm runs what compress_tflm makes, and no device has it"
    assert missing.fix == "add a device that has it, such as cortex-m"


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_two_bit_weights_are_refused(scheme: str, write_recipe: Callable[..., Path]) -> None:
    quantize = f"{{scheme: {scheme}, layers: {{'*': int2}}}}"
    plan = make_plan(write_recipe(optimize=f"{{two: {{quantize: {quantize}}}}}", formats="[tflite]"))
    (missing,) = plan.impossible
    assert "rejects option 'layers.*': input should be 'float32'" in missing.reason


def test_a_search_may_vary_the_bits_of_codes(write_recipe: Callable[..., Path]) -> None:
    assert options_of(DIMENSIONS | {"coarsen": 3}) == {
        "quantize": "int8",
        "coarsen": {"bits": 3},
        "compress": True,
    }
    search = "{{best: {{search: {{over: {{coarsen: {}}}}}}}}}"
    for values, device, words in (
        ("[false, 3]", "host", "3 is not available: only tflm runs what compress_tflm makes"),
        ("[9]", "cortex-m", "expected false, or a mean number of bits from 1 to 8, not 9"),
    ):
        recipe = load_recipe(
            write_recipe(optimize=search.format(values), formats="[tflite]", devices=f"[{device}]")
        )
        task = next(variant.search for variant in recipe.variants if variant.search is not None)
        with pytest.raises(RecipeError, match=words):
            space_of(recipe, "best", task)
    recipe = load_recipe(
        write_recipe(optimize=search.format("[false, 3]"), formats="[tflite]", devices="[cortex-m]")
    )
    task = next(variant.search for variant in recipe.variants if variant.search is not None)
    assert space_of(recipe, "best", task).choices("coarsen") == (False, 3)
