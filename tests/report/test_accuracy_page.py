"""The page of errors: every figure it is given is on it."""

from frontier_mock.report.accuracy_page import accuracy_page

SERVING = {
    "rows of one kind": {
        "rows": 3.0,
        "tpot_median_abs": 4.25,
        "tpot_median_signed": -1.5,
        "ttft_median_abs": 7.5,
        "ttft_median_signed": 6.5,
        "throughput_median_abs": 2.5,
        "throughput_median_signed": -0.5,
        "peak_share": 0.43,
    },
    "rows of one kind | tp4": {"rows": 2.0, "tpot_median_abs": 3.0, "tpot_median_signed": 2.0},
}
KERNELS = [{"what": "gemm", "mape": 0.031, "median": 0.02, "p90": 0.09, "points": 7}]
ANCHORS = [{"row": "A65", "what": "prefill", "unit": "us", "measured": 100.0, "simulated": 95.0}]


def test_groups_come_first_and_their_parts_after() -> None:
    page = accuracy_page(SERVING, KERNELS, ANCHORS)
    whole = page.index("| rows of one kind | 3 | 4.2 | -1.5 | 7.5 | +6.5 | 2.5 | -0.5 | 0.43 |")
    assert whole < page.index("### By tensor parallelism")
    assert "| rows of one kind, tp4 | 2 | 3.0 | +2.0 |  |  |  |  |  |" in page


def test_kernels_and_anchors_are_listed() -> None:
    page = accuracy_page(SERVING, KERNELS, ANCHORS)
    assert "| gemm | 3.1% | 2.0% | 9.0% | 7 |" in page
    assert "| A65 | prefill | 100 | 95 | us | -5.0 % |" in page


def test_without_kernel_errors_their_section_is_left_out() -> None:
    assert "## Kernels" not in accuracy_page(SERVING, [], ANCHORS)


def test_the_trace_is_listed_with_its_charts() -> None:
    rows = [{"what": "TTFT p50", "measured_ms": 200.0, "simulated_ms": 190.0}]
    page = accuracy_page(SERVING, KERNELS, ANCHORS, rows)
    assert "| TTFT p50 | 200.0 | 190.0 | -5.0 % |" in page
    assert "](accuracy-ttft.svg)" in page
    assert "](accuracy-ttft.svg)" not in accuracy_page(SERVING, KERNELS, ANCHORS)
