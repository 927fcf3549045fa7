"""The laws of clusters whose prompts and outputs are made on different engines."""

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontier_mock.cluster.links import FabricSpec
from frontier_mock.cluster.specs import ConnectorSpec
from frontier_mock.core.commands import CHANGES, Abort, Change, Command, Submit, Transfer
from frontier_mock.core.events import Finished, Rejected
from frontier_mock.core.journal import from_lines, to_line
from frontier_mock.drive.offline import replay
from frontier_mock.serving.specs import AnySchedulerSpec
from tests.cluster.test_pairing import check_rest, pools
from tests.laws import test_macro_steps as vllm
from tests.laws import test_sglang_macro_steps as sglang
from tests.laws.test_drafted_macro_steps import drafted_schedulers, drafted_sglang, token_times

STYLES = {"vllm": ("pull", "push"), "sglang": ("room",)}


@st.composite
def turns(draw: st.DrawFn, first: Submit, second: Submit, gap: int) -> list[tuple[int, Command]]:
    """What the decode engine has of a turn goes back to the prefill engine for the next one."""
    wish = first.transfer
    assert wish is not None
    back = replace(wish, key=f"back of {wish.key}")
    again = replace(back, sends=False, tokens=draw(st.sampled_from([1, 40, 500])))
    again = replace(again, threshold=draw(st.sampled_from([0, 64])))
    onward = replace(wish, key=f"again {wish.key}")
    second = replace(second, onward=back)
    third = replace(first, transfer=again, onward=onward)
    fourth = replace(second, transfer=replace(onward, sends=False), onward=None)
    late = draw(st.sampled_from([0, 3_000_000, 90_000_000]))
    return [(0, first), (gap, second), (gap + late, third), (gap + 2 * late, fourth)]


@st.composite
def legs(draw: st.DrawFn, command: Submit, number: int, style: str) -> list[tuple[int, Command]]:
    """A request as a live router sends it: one leg or both, in either order, some of them late."""
    wish = Transfer(
        f"key {draw(st.integers(0, 3)) if draw(st.booleans()) else number}",
        True,
        style,
        draw(st.sampled_from([3_000_000, 300_000_000])),
        draw(st.booleans()),
        draw(st.booleans()),
    )
    first = replace(command, worker=0, output_tokens=1, max_tokens=1, transfer=wish)
    second = replace(command, worker=1, transfer=replace(wish, sends=False))
    gap = draw(st.sampled_from([0, 1, 700_000, 2_000_000, 9_000_000]))
    if style == "pull" and draw(st.booleans()):
        return draw(turns(first, second, gap))
    kept: list[list[tuple[int, Command]]] = [
        [(0, first), (gap, second)],
        [(0, second), (gap, first)],
        [(0, first)],
        [(0, second)],
    ]
    return draw(st.sampled_from(kept))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_macro_steps_and_single_steps_give_the_same_log(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(["vllm", "sglang"]))
    drafts = data.draw(st.booleans())
    if family == "vllm":
        of_family = drafted_schedulers() if drafts else vllm.schedulers()
    else:
        of_family = drafted_sglang() if drafts else sglang.schedulers()
    scheduler: AnySchedulerSpec = data.draw(of_family)
    style = data.draw(st.sampled_from(STYLES[family]))
    timed: list[tuple[int, Command]] = []
    for t_ns, command in data.draw(vllm.commands(scheduler.block_size, controls=False)):
        if isinstance(command, Submit) and data.draw(st.booleans()):
            pair = data.draw(legs(command, len(timed), style))
            timed += [(t_ns + gap, leg) for gap, leg in pair]
        elif isinstance(command, Abort | Submit):
            timed.append(
                (t_ns, replace(command, worker=-1) if isinstance(command, Submit) else command)
            )
    workers = data.draw(st.integers(2, 4))
    for _ in range(data.draw(st.sampled_from([0, 0, 1, 4]))):
        t_ns = data.draw(st.sampled_from([0, 1_000_000, 5_000_123, 30_000_000, 210_000_000]))
        what = data.draw(st.sampled_from(CHANGES))
        factor = data.draw(st.sampled_from([0.1, 1.0])) if what == "link" else None
        timed.append((t_ns, Change(data.draw(st.integers(0, workers // 2)), what, factor)))
    timed.sort(key=lambda entry: entry[0])
    switches = any(isinstance(c, Change) and c.what in ("prefill", "decode") for _, c in timed)
    if switches and style == "pull":
        # Engines that hold all blocks for each other wait for ever, in vLLM too.
        scheduler = replace(scheduler, num_blocks=10_000)
    shape = {
        "prefill": workers // 2,
        "decode": workers - workers // 2,
        "ranks": data.draw(st.sampled_from([1, 1, 2])),
        "frontend_s": data.draw(st.sampled_from([0.0, 0.0004])),
        "fabric": FabricSpec(
            gpus_per_node=1, nic_bytes_per_s=data.draw(st.sampled_from([1e10, 1e7, 1e6]))
        ),
    }
    connector = ConnectorSpec("any", style, 0.05, data.draw(st.booleans()), style == "room")
    macro = pools(scheduler, connector, **shape)
    single = pools(scheduler, connector, single_step=True, **shape)
    vllm.play(macro, timed)
    vllm.play(single, timed, check=True)
    assert macro.log.events == single.log.events
    theirs = token_times(single)
    for rid, times in token_times(macro).items():
        assert np.array_equal(times, theirs[rid])
    for left, right in zip(macro.workers, single.workers, strict=True):
        assert left.gauges(macro.now_ns) == right.gauges(single.now_ns)
    ended = [e.rid for e in macro.log.events if isinstance(e, Finished | Rejected)]
    assert len(ended) == len(set(ended))
    submitted = sum(isinstance(command, Submit) for _, command in timed)
    assert sorted(rid for rid in ended if rid >= 0) == list(range(submitted))
    check_rest(macro)
    assert macro.pairing is not None
    assert single.pairing is not None
    assert macro.pairing.use(macro.now_ns) == single.pairing.use(single.now_ns)
    lines = [to_line(t_ns, command, scheduler.block_size) for t_ns, command in timed]
    assert replay(pools(scheduler, connector, **shape), from_lines(lines)) == macro.log.digest()
