"""Run random cases through vLLM's scheduler and ours and name the first difference of each.

python scripts/oracle/compare.py --cases 2000 [--first 0] [--drafts] [--stages 1] [--show]
"""

import argparse
import logging
import os
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from cases import draw_case, with_drafts
from our_engine import play
from record import Run
from vllm_engine import VllmEngine, build_vllm_config, write_model


def first_difference(theirs: Run, ours: Run) -> str | None:
    """Name and show the first thing that differs, in the order in which causes come first."""
    for name in ("steps", "admissions", "preemptions", "token_times", "finishes", "final_queue"):
        left, right = getattr(theirs, name), getattr(ours, name)
        if left == right:
            continue
        if isinstance(left, dict):
            rid = min(r for r in left.keys() | right.keys() if left.get(r) != right.get(r))
            return f"{name}[{rid}]: vllm {left.get(rid)}, ours {right.get(rid)}"
        size = min(len(left), len(right))
        i = next((i for i in range(size) if left[i] != right[i]), size)
        return f"{name}[{i}]: vllm {left[i : i + 1]}, ours {right[i : i + 1]}"
    return None


def excused(theirs: Run, ours: Run) -> bool:
    """Whether the first differing decision comes no earlier than vLLM's first duplicate block."""
    since = theirs.duplicated_ns
    if since is None:
        return False
    before = [[step for step in run.steps if step.decided_ns < since] for run in (theirs, ours)]
    early = [
        [a for a in run.admissions + run.preemptions if a[0] < since] for run in (theirs, ours)
    ]
    return before[0] == before[1] and early[0] == early[1]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--drafts", action="store_true", help="with speculative decoding")
    parser.add_argument("--stages", type=int, default=1, help="pipeline stages")
    parser.add_argument("--show", action="store_true", help="print every differing case")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    # Only this one schedules ahead with pipeline stages; the scheduler is the same with both.
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1" if args.stages > 1 else "0"
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        config = build_vllm_config(write_model(Path(folder)))
        for number in range(args.first, args.first + args.cases):
            case = draw_case(number)
            if args.drafts:
                case = with_drafts(case, number)
            case.spec = replace(case.spec, pipeline_stages=args.stages)
            theirs = VllmEngine(config, case).play()
            seen["cases with a block cached twice"] += theirs.duplicated_ns is not None
            seen["steps"] += len(theirs.steps)
            seen["preemptions"] += len(theirs.preemptions)
            seen["chunks"] += sum(len(step.chunks) for step in theirs.steps)
            seen["admissions with a hit"] += sum(1 for a in theirs.admissions if a[2])
            seen["aborts"] += sum(1 for *_, reason in theirs.finishes if reason == "abort")
            ours = play(case)
            difference = first_difference(theirs, ours)
            if difference is None:
                seen["cases that agree"] += 1
                continue
            where = "differ in " + difference.split("[")[0]
            excuse = excused(theirs, ours)
            seen[where + " after a block was cached twice" * excuse] += 1
            if excuse:
                seen["tokens hit by vllm, those cases"] += sum(a[2] for a in theirs.admissions)
                seen["tokens hit by ours, those cases"] += sum(a[2] for a in ours.admissions)
                seen["of those, other compositions"] += [s[:4] for s in theirs.steps] != [
                    s[:4] for s in ours.steps
                ]
                seen["of those, other finish times"] += theirs.finishes != ours.finishes
            elif args.show:
                print(f"case {number}: {difference[:400]}")
    for what, count in seen.most_common():
        print(f"{count:>9} {what}")
    return int(any(what.startswith("differ") and "twice" not in what for what in seen))


if __name__ == "__main__":
    sys.exit(main())
