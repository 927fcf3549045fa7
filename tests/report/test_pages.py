"""The terminal report and the HTML page: complete, escaped, and readable by an XML parser."""

import io
import json
import re
from html import unescape
from xml.etree import ElementTree

import pytest
from rich.console import Console

from frontier_mock.drive.offline import run
from frontier_mock.report.charts import Chart, Line, draw, short
from frontier_mock.report.html import html_report
from frontier_mock.report.latency import Sample
from frontier_mock.report.records import ABORTED, COMPLETED, NEVER, REJECTED, RequestRecord
from frontier_mock.report.specs import SloSpec
from frontier_mock.report.summary import RunReport, report_cluster, report_records
from frontier_mock.report.terminal import WIDTH, figure, print_result
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.workload.build import build_source
from frontier_mock.workload.specs import ClosedLoopSpec, PromptSpec, UniformTokens
from tests.engine import toy_cluster


def engine_report(scenario: str = "toy", workers: int = 2) -> RunReport:
    cluster = toy_cluster(SchedulerSpec(8, 64, 120, 4, 60), workers=workers)
    spec = ClosedLoopSpec(PromptSpec(UniformTokens(1, 50), UniformTokens(1, 40)), 6, 60, 4)
    offline = run(cluster, build_source(spec, seed=0))
    measured = [item.measured for item in offline.items]
    return report_cluster(cluster, scenario, 0.25, measured, SloSpec(500, 50))


def printed(report: RunReport, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_result(report.result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def svgs(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]


def with_client(report: RunReport) -> RunReport:
    report.result["client"] = {
        "url": "http://127.0.0.1:30000",
        "mode": "warp",
        "figures_from": "engine",
        "lateness_ms": Sample([1_000_000, 3_000_000]).stats_ms(),
        "requests_per_wall_s": 1234.5,
        "prompt_tokens_differ": 1,
        "output_tokens_differ": 2,
        "server_requests": 99,
        "stalls": 3,
        "grace_jumps": 4,
    }
    return report


def test_the_terminal_report_fits_eighty_columns_and_says_everything() -> None:
    report = engine_report()
    text = printed(report)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= WIDTH
    result = report.result
    assert "60 of 60 requests completed, after 4 of warm-up" in text
    for name in ("TTFT", "TPOT", "ITL", "E2E"):
        assert name in text
    assert figure(result["ttft_ms"]["p99"]) in text
    assert f"{result['preemptions']:,}" in text
    assert "w0" in text
    assert "w1" in text
    assert result["digest"] in text
    assert printed(report, width=80) == text


def test_many_workers_are_counted_not_listed() -> None:
    text = printed(engine_report(workers=30))
    assert "and 6 more" in text


def test_whatever_was_not_as_asked_is_said() -> None:
    report = with_client(engine_report())
    report.result["outcomes"] |= {"rejected: 400: too long": 7, "aborted: abort": 2}
    report.result["requests"]["rejected"] = 7
    skipped = [f"line {i}: not valid JSON" for i in range(2, 9)]
    report.result["trace"] = {
        "rows": 70,
        "read": 63,
        "clipped": 5,
        "out_of_order": 6,
        "skipped": skipped,
    }
    for text in (printed(report), html_report(report)):
        assert "7 rejected: 400: too long" in text
        assert "2 aborted: abort" in text
        assert "63 of 70 rows read" in text
        assert "5 lengths of 0 raised to 1" in text
        assert "6 rows out of order" in text
        assert "skipped line 2: not valid JSON" in text
        assert "and 2 more skipped rows" in text
        assert "1 prompts had another length" in text
        assert "2 outputs had another length" in text
        assert "3 stalls" in text
        assert "4 jumps" in text
        assert "3.00 ms at most" in text
    assert ", 7 rejected" in printed(report)
    assert "cover 99 requests" in " ".join(printed(report).split())


def test_the_page_stands_alone_and_holds_four_distributions_and_two_timelines() -> None:
    report = engine_report()
    page = html_report(report)
    assert not re.search(r"(src|href)=|@import|url\(|<script", page)
    charts = svgs(page)
    assert len(charts) == 6
    for chart in charts:
        for line in chart.iter("polyline"):
            for point in line.attrib["points"].split():
                x, y = (float(value) for value in point.split(","))
                width, height = (float(v) for v in chart.attrib["viewBox"].split()[2:])
                assert 0 <= x <= width
                assert 0 <= y <= height
    raw = re.search(r"<pre>(.*)</pre>", page, re.S)
    assert raw is not None
    assert json.loads(unescape(raw.group(1))) == report.result


def test_cumulative_distributions_rise() -> None:
    for chart in svgs(html_report(engine_report()))[:4]:
        line = chart.find("polyline")
        assert line is not None
        points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
        assert [x for x, _ in points] == sorted(x for x, _ in points)
        assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)


def test_names_cannot_inject_markup() -> None:
    report = engine_report("<script>alert('x')</script>")
    report.result["outcomes"]["rejected: <b>no</b>"] = 1
    page = html_report(report)
    assert "<script" not in page
    assert "<b>no" not in page


@pytest.mark.parametrize(
    "records",
    [
        [],
        [RequestRecord(5, NEVER, 5, 9, 0, 0, REJECTED, "prompt_too_long", 0, 0, False)],
        [RequestRecord(5, 7, 7, 9, 1, 0, COMPLETED, "length", 0)],
        [
            RequestRecord(0, 10**9, 10**9, 9, 1, 0, COMPLETED, "length", 0),
            RequestRecord(0, NEVER, 10**9, 9, 0, 0, ABORTED, "abort", 0),
            RequestRecord(9, NEVER, NEVER, 9, 0, 0, "unfinished", "", 0),
        ],
    ],
    ids=["nothing", "rejected", "one token", "mixed"],
)
def test_a_run_with_little_in_it_has_a_report_too(records: list[RequestRecord]) -> None:
    report = report_records(records, "s", 0.0, None, Sample([]), [], "")
    assert f"of {len(records)} requests completed" in printed(report)
    svgs(html_report(report))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (950, "950"), (1500, "1,500"), (12_500, "12.5k"), (3.2e6, "3.2M")],
)
def test_axis_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize("log_x", [False, True])
@pytest.mark.parametrize("xs", [(1.0, 1.0), (1e-3, 1e6), (2.0, 2.05), (0.5, 700.0)])
def test_axes_cover_any_range(xs: tuple[float, float], log_x: bool) -> None:
    lines = [Line("l", "one", [(xs[0], 0.0), (xs[1], 0.0)])]
    chart = ElementTree.fromstring(draw(Chart("t", "x", "y", lines, log_x=log_x)))
    ticks = [element.text for element in chart.iter("text") if element.attrib["class"] == "tick"]
    assert 5 <= len(ticks) <= 30


def test_figures_have_sensible_digits() -> None:
    values = (None, 0.0123, 12.345, 123.45, 12_345.6)
    assert [figure(value) for value in values] == ["-", "0.01", "12.35", "123.5", "12,346"]
