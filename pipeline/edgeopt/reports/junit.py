"""The report as JUnit XML, for CI systems: one test case per gate and artifact."""

from xml.etree import ElementTree

from edgeopt.reports.plain import printable
from edgeopt.results import Report, Result, Verdict


def render(report: Report) -> str:
    """XML text of a report.

    A failed gate is a failure, an undecided one a failure or a skipped test, depending on the gate; an
    artifact that is unavailable is an error.
    """
    cases = [_artifact_case(result, report) for result in report.results]
    cases += [_gate_case(verdict, report) for verdict in report.gates]
    attributes = {
        "name": printable(f"edgeopt {report.recipe}"),
        "timestamp": report.run.started,
        "time": f"{report.run.seconds:.3f}",
        "tests": str(len(cases)),
    }
    for kind, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        attributes[kind] = str(sum(case.find(tag) is not None for case in cases))
    suite = ElementTree.Element("testsuite", attributes)
    suite.extend(cases)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _artifact_case(result: Result, report: Report) -> ElementTree.Element:
    case = _case(report, result.device, f"{result.variant}.{result.format} was built and measured")
    if result.status == "failed":
        _add(case, "error", result.reason)
    elif result.status == "skipped":
        _add(case, "error", f"skipped: {result.reason}")
    return case


def _gate_case(verdict: Verdict, report: Report) -> ElementTree.Element:
    case = _case(report, verdict.device, f"{verdict.variant}.{verdict.format}: {verdict.gate}")
    if verdict.blocks:
        _add(case, "failure", f"{verdict.status}: {verdict.reason}")
    elif verdict.status != "pass":
        _add(case, "skipped", f"{verdict.status}: {verdict.reason}")
    return case


def _case(report: Report, device: str, name: str) -> ElementTree.Element:
    return ElementTree.Element(
        "testcase", classname=printable(f"{report.recipe}.{device}"), name=printable(name)
    )


def _add(case: ElementTree.Element, tag: str, text: str) -> None:
    first = text.splitlines()[0] if text else ""
    ElementTree.SubElement(case, tag, message=printable(first)).text = printable(text)
