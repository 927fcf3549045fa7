"""The result as one HTML page that needs nothing else: latencies, a timeline, workers, notes."""

import json
from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np

from frontier_mock.report.charts import Chart, Line, draw, short
from frontier_mock.report.latency import COLUMNS, Floats, Ints, Sample, in_columns
from frontier_mock.report.oracle import oracle_lines, oracle_title
from frontier_mock.report.records import NEVER, RequestRecord
from frontier_mock.report.roles import ROLE_HEAD, cost_lines, role_cells
from frontier_mock.report.summary import Result, RunReport, latencies
from frontier_mock.report.terminal import figure, notes
from frontier_mock.report.transfers import LINK_HEAD, link_cells, transfer_title
from frontier_mock.simtime import NS_PER_S

_BINS = 240
_CDF_POINTS = 201

_STYLE = """
:root{--ink:#1b1f24;--soft:#5c6670;--rule:#d8dde3;--page:#fff;--card:#f6f8fa;
--one:#1f6fd1;--two:#d9622b}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#98a2ad;--rule:#343b44;
--page:#14181d;--card:#1c2229;--one:#5aa2f5;--two:#f0905f}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1000px;padding:28px 20px 60px;background:var(--page);
color:var(--ink);font:15px/1.45 system-ui,sans-serif}
h1{font-size:22px;margin:0 0 2px}h2{font-size:16px;margin:34px 0 10px}
.sub{color:var(--soft);margin:0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(118px,1fr));gap:10px;
margin-top:18px}
.card{background:var(--card);border-radius:8px;padding:10px 14px}
.card b{display:block;font-size:20px;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:13px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 8px;border-bottom:1px solid var(--rule)}
th{color:var(--soft);font-weight:500;font-size:13px}
th:first-child,td:first-child{text-align:left}
.scroll{overflow-x:auto}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:18px}
figure{margin:0}figcaption{font-size:14px;font-weight:600;margin-bottom:2px}
.legend{font-weight:400;color:var(--soft);margin-left:10px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:2px;margin:0 4px 0 10px}
svg{display:block;width:100%;height:auto}
.grid{stroke:var(--rule)}.tickmark{stroke:var(--soft)}
.tick,.axis{fill:var(--soft);font-size:11px}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.area{opacity:.16;stroke:none}
.one{stroke:var(--one)}.two{stroke:var(--two)}
.area.one{fill:var(--one)}.area.two{fill:var(--two)}
i.one{background:var(--one)}i.two{background:var(--two)}
.mark{fill:var(--one);stroke:var(--page);stroke-width:1.5}
.marklabel{fill:var(--ink);font-size:11px}
ul{margin:0;padding-left:18px;color:var(--soft)}li{overflow-wrap:anywhere}
details{margin-top:34px;color:var(--soft)}pre{overflow-x:auto;font-size:12px}
"""


def html_report(report: RunReport) -> str:
    """The whole page."""
    result = report.result
    title = escape(result["scenario"])
    digest = f'<p class="sub">digest {result["digest"]}</p>' if result["digest"] else ""
    raw = escape(json.dumps(result, indent=1))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title} · frontier_mock</title><style>{_STYLE}</style></head><body>"
        f'<h1>{title}</h1><p class="sub">{_subtitle(result)}</p>{digest}{_cards(result)}'
        f"<h2>Latency, ms</h2>{_latency_table(result)}{_distributions(report)}"
        f"<h2>Over time</h2>{_timeline(report.records)}"
        f"{_oracle_table(result)}{_transfer_tables(result)}{_role_tables(result)}{_worker_table(result)}{_note_list(result)}"
        f"<details><summary>Result as JSON</summary><pre>{raw}</pre></details></body></html>\n"
    )


def _subtitle(result: Result) -> str:
    duration_s, wall_s = result["duration_s"], result["wall_s"]
    speed = f" ({duration_s / wall_s:,.1f}x real time)" if wall_s > 0 else ""
    return f"{duration_s:,.1f} s simulated in {wall_s:,.2f} s{speed}"


def _cards(result: Result) -> str:
    requests, cache = result["requests"], result["prefix_cache"]
    good = result["goodput_requests_per_s"]
    cards = [
        (f"{requests['completed']:,}", f"of {requests['submitted']:,} requests completed"),
        (f"{result['requests_per_s']:,.2f}", "requests/s"),
        (f"{result['output_tokens_per_s']:,.0f}", "output tokens/s"),
        (f"{result['input_tokens_per_s']:,.0f}", "input tokens/s"),
        (f"{cache['hit_rate']:.1%}", "prefix cache hit rate"),
        (f"{result['preemptions']:,}", "preemptions"),
    ]
    if good is not None:
        cards.insert(2, (f"{good:,.2f}", "requests/s within the SLO"))
    parts = "".join(f'<div class="card"><b>{a}</b><span>{b}</span></div>' for a, b in cards)
    return f'<div class="cards">{parts}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def _oracle_table(result: Result) -> str:
    stats = result.get("cache_oracle")
    if stats is None:
        return ""
    title = escape(oracle_title(stats).capitalize())
    return f"<h2>{title}</h2>{_table(('', 'tokens hit'), oracle_lines(stats))}"


def _transfer_tables(result: Result) -> str:
    transfers = result.get("transfers")
    if transfers is None or not transfers["requests"]:
        return ""
    parts = [
        [name.replace("_", " "), *(figure(value) for value in in_columns(stats))]
        for name, stats in transfers["ttft_parts_ms"].items()
    ]
    links = [link_cells(link) for link in transfers["links"]]
    return (
        f"<h2>Parts of TTFT, ms</h2>{_table(('', *COLUMNS), parts)}"
        f"<h2>{escape(transfer_title(transfers))}</h2>{_table(LINK_HEAD, links)}"
    )


def _role_tables(result: Result) -> str:
    roles, cost = result.get("roles"), result.get("cost")
    made = ""
    if roles:
        made = f"<h2>Roles</h2>{_table(ROLE_HEAD, [role_cells(row) for row in roles])}"
    if cost is not None and (lines := cost_lines(cost)):
        made += f"<h2>Cost</h2>{_table(('', 'value'), lines)}"
    return made


def _latency_table(result: Result) -> str:
    rows = [
        [name, *(figure(value) for value in in_columns(stats))] for name, stats in latencies(result)
    ]
    return _table(("", *COLUMNS), rows)


def _distributions(report: RunReport) -> str:
    samples = report.samples
    named = (
        ("Time to first token", samples.ttft),
        ("Time per output token", samples.tpot),
        ("Inter-token latency", samples.itl),
        ("End to end", samples.e2e),
    )
    figures = [_cdf(name, sample) for name, sample in named if sample.count]
    return f'<h2>Distributions</h2><div class="charts">{"".join(figures)}</div>' if figures else ""


def _cdf(name: str, sample: Sample) -> str:
    shares = np.linspace(0, 1, _CDF_POINTS)
    values_ms = (sample.quantiles_ns(shares.tolist()) / 1e6).tolist()
    marks = [
        (ms, share, f"p{share * 100:.0f} {figure(ms)}")
        for share, ms in zip(
            (0.5, 0.9, 0.99), (sample.quantiles_ns((0.5, 0.9, 0.99)) / 1e6).tolist(), strict=True
        )
    ]
    chart = Chart(
        title=f"{name}, cumulative distribution",
        x_label="ms",
        y_label="share",
        lines=[Line(name, "one", list(zip(values_ms, shares.tolist(), strict=True)))],
        log_x=True,
        y_max=1.0,
        percent_y=True,
        marks=marks,
    )
    return f"<figure><figcaption>{escape(name)}</figcaption>{draw(chart)}</figure>"


def _timeline(records: Sequence[RequestRecord]) -> str:
    started = [record for record in records if record.finish_ns != NEVER]
    if not started:
        return '<p class="sub">No request ended.</p>'
    start_ns = min(record.arrival_ns for record in started)
    end_ns = max(record.finish_ns for record in started)
    if end_ns == start_ns:
        return '<p class="sub">Nothing took any time.</p>'
    edges = np.linspace(start_ns, end_ns, _BINS + 1).astype(np.int64)
    arrival = _sorted([record.arrival_ns for record in started])
    # Rejected and never-started requests wait until they end.
    first = _sorted(
        [r.finish_ns if r.first_token_ns == NEVER else r.first_token_ns for r in started]
    )
    finish = _sorted([record.finish_ns for record in started])
    seconds = ((edges - start_ns) / NS_PER_S).tolist()
    came, began, went = (
        np.searchsorted(times, edges, side="right") for times in (arrival, first, finish)
    )
    load = Chart(
        title="Requests in flight over time",
        x_label="s",
        y_label="requests",
        lines=[
            Line("in flight", "one", _pairs(seconds, came - went), filled=True),
            Line("waiting for the first token", "two", _pairs(seconds, came - began), filled=True),
        ],
        width=920,
        height=240,
    )
    bin_s = (end_ns - start_ns) / _BINS / NS_PER_S
    middles = [(a + b) / 2 for a, b in pairwise(seconds)]
    rates = Chart(
        title="Requests per second over time",
        x_label="s",
        y_label="requests/s",
        lines=[
            Line("arrivals", "one", _pairs(middles, _histogram(arrival, edges) / bin_s)),
            Line("completions", "two", _pairs(middles, _histogram(finish, edges) / bin_s)),
        ],
        width=920,
        height=200,
    )
    return "".join(
        f"<figure><figcaption>{caption}{_legend(chart.lines)}</figcaption>{draw(chart)}</figure>"
        for caption, chart in (
            ("Requests in flight", load),
            (f"Requests per second, over {short(bin_s)} s", rates),
        )
    )


def _sorted(times: list[int]) -> Ints:
    return np.sort(np.array(times, np.int64))


def _histogram(times: Ints, edges: Ints) -> Ints:
    counts: Ints = np.histogram(times, edges)[0].astype(np.int64)
    return counts


def _pairs(xs: Sequence[float], ys: Ints | Floats) -> list[tuple[float, float]]:
    return list(zip(xs, ys.tolist(), strict=True))


def _legend(lines: Sequence[Line]) -> str:
    items = "".join(f'<i class="{line.css}"></i>{escape(line.name)}' for line in lines)
    return f'<span class="legend">{items}</span>'


def _worker_table(result: Result) -> str:
    if not result["workers"]:
        return ""
    head = ("worker", "requests", "KV tokens", "busy", "prefix hits", "preemptions", "steps")
    rows = [
        [
            worker["name"],
            f"{worker['requests']:,}",
            f"{worker['kv_capacity_tokens']:,}",
            f"{worker['busy_fraction']:.1%}",
            f"{worker['hit_tokens'] / (worker['query_tokens'] or 1):.1%}",
            f"{worker['preemptions']:,}",
            f"{worker['steps']:,}",
        ]
        for worker in result["workers"]
    ]
    return f"<h2>Workers</h2>{_table(head, rows)}"


def _note_list(result: Result) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in notes(result))
    return f"<h2>Notes</h2><ul>{lines}</ul>" if lines else ""
