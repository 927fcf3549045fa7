"""`scripts/bench`: every speed figure of the issue, with the machine's own baseline beside it."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.bench.clock import clock_figures
from tests.bench.disaggregated import disaggregated_figures
from tests.bench.figures import Figure, bare_heap_s, bare_loop_s
from tests.bench.grpc import grpc_figures
from tests.bench.in_process import in_process_figures
from tests.bench.offline import offline_figures
from tests.bench.server import server_figures
from tests.bench.virtual_time import virtual_time_figures

GROUPS = {
    "offline": offline_figures,
    "server": server_figures,
    "grpc": grpc_figures,
    "clock": clock_figures,
    "virtual_time": virtual_time_figures,
    "in_process": in_process_figures,
    "disaggregated": disaggregated_figures,
}


def main() -> int:
    parser = argparse.ArgumentParser("scripts/bench", description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="default: all")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    baseline = {"bare_loop_10M_s": bare_loop_s(), "bare_heap_1M_s": bare_heap_s()}
    print(f"this machine: 10M rounds of a bare loop {baseline['bare_loop_10M_s']:.2f} s, ", end="")
    print(f"1M heap pops and pushes {baseline['bare_heap_1M_s']:.2f} s", flush=True)
    figures: list[Figure] = []
    for name in arguments.groups or GROUPS:
        for figure in GROUPS[name]():
            figures.append(figure)
            print(_line(figure), flush=True)
    if arguments.json:
        rows = [{**asdict(figure), "met": figure.met()} for figure in figures]
        arguments.json.write_text(json.dumps({"baseline": baseline, "figures": rows}, indent=1))
    return 0


def _line(figure: Figure) -> str:
    sign = ">=" if figure.higher_is_better else "<="
    value = f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:,.2f}"
    verdict = "ok  " if figure.met() else "MISS"
    text = f"{verdict} {figure.name}: {value} {figure.unit} (goal {sign} {figure.goal:,g})"
    return f"{text}; {figure.note}" if figure.note else text


if __name__ == "__main__":
    sys.exit(main())
