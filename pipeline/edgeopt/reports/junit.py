"""The report as JUnit XML: one test case per gate and artifact, so that any CI shows them."""

from xml.etree import ElementTree

from edgeopt.reports.plain import printable
from edgeopt.results import Report, Result, Verdict


def render(report: Report) -> str:
    """XML text of a report.

    A failed gate is a failure, an undecided one a failure or a skipped test as the gate wants it; an
    artifact that could not be had is an error.
    """
    cases = [_made(result, report) for result in report.results]
    cases += [_judged(verdict, report) for verdict in report.gates]
    told = {
        "name": printable(f"edgeopt {report.recipe}"),
        "timestamp": report.run.started,
        "time": f"{report.run.seconds:.3f}",
        "tests": str(len(cases)),
    }
    for kind, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        told[kind] = str(sum(case.find(tag) is not None for case in cases))
    suite = ElementTree.Element("testsuite", told)
    suite.extend(cases)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _made(result: Result, report: Report) -> ElementTree.Element:
    case = _case(report, result.device, f"{result.variant}.{result.format} was built and measured")
    if result.status == "failed":
        _add(case, "error", result.reason)
    elif result.status == "skipped":
        _add(case, "error", f"skipped: {result.reason}")
    return case


def _judged(verdict: Verdict, report: Report) -> ElementTree.Element:
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
