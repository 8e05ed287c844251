"""The graph of a file's operators: what is connected, what is left out, and how a report shows it."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from edgeopt.errors import StageError
from edgeopt.evaluation.diagnosis import Diagnosis
from edgeopt.evaluation.layer_causes import Cause
from edgeopt.evaluation.layer_statistics import Comparison, LayerStatistics
from edgeopt.formats.file_graph import MAX_NODES, graph_of
from edgeopt.formats.known import formats
from edgeopt.plugin.contents import LayerSize, SizeBreakdown
from edgeopt.plugin.format import Format
from edgeopt.reports import html
from edgeopt.reports.diagnosis import render as render_diagnosis
from edgeopt.reports.pagedata.graph import matched
from edgeopt.results import Artifact, Breakdown, GraphNode, Report, Result
from large_report import RUN
from toy_tflite import toy


class Toy(Format):
    """A format of which only the connections are known."""

    title: ClassVar[str] = "a toy"
    casts: ClassVar[frozenset[str]] = frozenset({"Cast"})
    connections: ClassVar[tuple[tuple[int, ...], ...]] = ()

    def reads(self, path: Path) -> tuple[tuple[int, ...], ...]:
        if not self.connections:
            raise StageError("damaged")
        return self.connections


def toy_graph(*operators: tuple[str, int, tuple[int, ...]]) -> list[tuple[str, int, tuple[int, ...]]]:
    """The graph of operators: kind, bytes, and what each reads."""

    class Connected(Toy):
        connections = tuple(reads for _, _, reads in operators)

    layers = tuple(
        LayerSize(name=f"n{at};fused", kind=kind, weight_bytes=size)
        for at, (kind, size, _) in enumerate(operators)
    )
    sizes = SizeBreakdown(file="f", format="toy", size_bytes=0, parts={}, layers=layers)
    return [(node.name, node.size_bytes, node.reads) for node in graph_of(Connected(), Path("f"), sizes)]


def test_conversions_and_constants_are_left_out() -> None:
    found = toy_graph(
        ("Cast", 0, (-1,)),
        ("Cast", 100, ()),  # a constant weight
        ("Conv", 7, (0, 1)),
        ("Cast", 0, (2,)),
        ("Fill", 30, ()),  # computes a constant
        ("Neg", 0, (4,)),
        ("Add", 0, (3, 2, 5)),
        ("Mul", 0, (6, 5)),
    )
    assert found == [("n2", 107, ()), ("n6", 30, (0,)), ("n7", 0, (1,))]


def test_a_file_that_cannot_be_connected_has_no_graph() -> None:
    sizes = SizeBreakdown(
        file="f", format="toy", size_bytes=0, parts={}, layers=(LayerSize(name="a", kind="b"),)
    )
    assert graph_of(Toy(), Path("f"), sizes) == ()
    assert toy_graph(*[("Conv", 0, (-1,))] * (MAX_NODES + 1)) == []


def test_tflite_operators_are_connected(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    file = tmp_path / "toy.tflite"
    file.write_bytes(toy())
    kind = formats()["tflite"]
    nodes = graph_of(kind, file, kind.breakdown(file))
    assert [(node.kind, node.size_bytes, node.reads) for node in nodes] == [
        ("FULLY_CONNECTED", 96, ()),
        ("FULLY_CONNECTED", 96, (0,)),
    ]


def test_onnx_operators_are_connected_also_through_subgraphs(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    value = make.make_tensor_value_info
    inner = [
        make.make_graph([make.make_node(kind, ["h"], ["o"])], kind, [], [value("o", 1, [2])])
        for kind in ("Neg", "Abs")
    ]
    nodes = [
        make.make_node("Relu", ["x"], ["h"]),
        make.make_node("If", ["c"], ["y"], then_branch=inner[0], else_branch=inner[1]),
        make.make_node("Add", ["y", "h"], ["z"]),
    ]
    graph = make.make_graph(nodes, "g", [value("x", 1, [2]), value("c", 9, [])], [value("z", 1, [2])])
    file = tmp_path / "toy.onnx"
    onnx.save(make.make_model(graph), file)
    kind = formats()["onnx"]
    assert [node.reads for node in graph_of(kind, file, kind.breakdown(file))] == [(), (0,), (1, 0)]


def nodes(*names: str) -> list[GraphNode]:
    return [GraphNode(name=name, kind="Conv", size_bytes=0) for name in names]


def test_times_belong_to_the_operators_of_the_same_name() -> None:
    rows: list[tuple[str, Any]] = [
        ("conv_token_3", 2.0),
        ("relu", 1.0),
        ("relu", 0.5),
        ("relu;add", 0.25),
        ("other", 4.0),
    ]
    rows += [("conv", None), ("conv", float("nan"))]
    assert matched(nodes("conv", "relu", "relu", "add"), rows) == ([2.0, 1.0, 0.75, None], 4.0)


def report(graph: list[GraphNode], layers: tuple[dict[str, Any], ...] = ()) -> Report:
    file = Artifact(
        path="m.tflite", digest="", size_bytes=9, breakdown=Breakdown(parts={"a": 9}, graph=tuple(graph))
    )
    result = Result(variant="v", format="f", device="d", status="ok", artifact=file, layers=layers)
    return Report(recipe="r", run=RUN, results=(result,))


def test_a_hostile_graph_is_text_and_has_no_cycle() -> None:
    word = "</script><script>alert(1)</script>"
    bad = [GraphNode(name=word, kind=word, size_bytes=1, reads=(0, 1, -5, 99)) for _ in range(2)]
    page = html.render(report(bad, layers=({"layer": word, "ms": 1.0},)))
    assert word not in page
    assert '1,null,[]],["' in page
    assert "1,null,[0]]" in page


def layer(name: str, share: float) -> LayerStatistics:
    ratios = dict.fromkeys(("snr_db", "own_snr_db", "alone_snr_db"), 40.0)
    return LayerStatistics(
        name=name, operator="Conv", share=share, mean_error=0.0, bias=0.0, minimum=0.0, maximum=1.0, **ratios
    )


def diagnosis(word: str) -> Diagnosis:
    comparison = Comparison(
        samples=64, snr_db=30.0, agreement=0.5, layers=(layer("conv", 0.25), layer(word, float("nan")))
    )
    return Diagnosis(
        recipe=word,
        variant=word,
        format="onnx",
        data=word,
        comparison=comparison,
        causes=(Cause(kind="unknown", text=word),),
        patch={"optimize": {"int8": {"quantize": word}}},
        notes=(word,),
        graph=tuple(nodes("conv", word)),
    )


def test_a_diagnosis_is_a_page_with_the_error_in_its_graph() -> None:
    page = render_diagnosis(diagnosis("other"))
    assert '"errors":[0.25,null]' in page
    assert '"optimize:\\n  int8: {quantize: other}"' in page
    hostile = render_diagnosis(diagnosis("</script><script>alert(1)</script>"))
    assert hostile.count("<") == page.count("<")
