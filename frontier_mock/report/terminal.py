"""The result for a terminal of eighty columns."""

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from frontier_mock.report.latency import COLUMNS, in_columns
from frontier_mock.report.oracle import OracleStats, oracle_lines, oracle_title
from frontier_mock.report.roles import ROLE_HEAD, RoleStats, cost_lines, role_cells
from frontier_mock.report.summary import ClientStats, Result, WorkerStats, latencies
from frontier_mock.report.tiers import tier_lines
from frontier_mock.report.transfers import (
    LINK_HEAD,
    TransferStats,
    link_cells,
    transfer_title,
)

WIDTH = 80
_WORKERS_SHOWN = 24
_SKIPPED_SHOWN = 5


def print_result(result: Result, console: Console) -> None:
    """Print the whole result."""
    console.print(terminal_report(result), width=min(console.width, WIDTH))


def terminal_report(result: Result) -> RenderableType:
    """The result as something rich can print."""
    parts: list[RenderableType] = [_headline(result), _latencies(result), _rates(result)]
    oracle = result.get("cache_oracle")
    if oracle is not None:
        parts.append(_oracle(oracle))
    drafts = result.get("speculation")
    if drafts is not None:
        shares = ", ".join(f"{share:.0%}" for share in drafts["accepted_per_position"])
        parts.append(
            Text(f"drafts: {drafts['acceptance_length']:.2f} tokens a verification ({shares})")
        )
    transfers = result.get("transfers")
    if transfers is not None and transfers["requests"]:
        parts += [_ttft_parts(transfers), _links(transfers)]
    roles = result.get("roles")
    if roles:
        parts.append(_roles(roles))
    if result["workers"]:
        parts.append(_workers(result["workers"]))
    parts.extend(_notes(result))
    if result["digest"]:
        parts.append(Text(f"digest {result['digest']}", style="dim"))
    return Group(*parts)


def _headline(result: Result) -> Text:
    requests = result["requests"]
    text = Text(result["scenario"], style="bold")
    text.append(f"\n{requests['completed']:,} of {requests['submitted']:,} requests completed")
    for count, outcome in ((requests["rejected"], "rejected"), (requests["aborted"], "aborted")):
        if count:
            text.append(f", {count:,} {outcome}", style="yellow")
    if result["warmup_requests"]:
        text.append(f", after {result['warmup_requests']:,} of warm-up")
    text.append(f"\n{result['duration_s']:,.3f} s simulated in {result['wall_s']:,.3f} s")
    if result["wall_s"] > 0:
        text.append(f" ({result['duration_s'] / result['wall_s']:,.1f}x real time)")
    return text


def _latencies(result: Result) -> Table:
    table = Table(title="latency, ms", title_justify="left", expand=True)
    table.add_column("")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, stats in latencies(result):
        table.add_row(name, *(figure(value) for value in in_columns(stats)))
    return table


def figure(value: float | None) -> str:
    """Milliseconds with four significant digits or so; a dash for no sample."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _rates(result: Result) -> Table:
    cache = result["prefix_cache"]
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_row("requests/s", f"{result['requests_per_s']:,.2f}")
    good = result["goodput_requests_per_s"]
    if good is not None:
        table.add_row("goodput, requests/s", f"{good:,.2f}")
    table.add_row("input tokens/s", f"{result['input_tokens_per_s']:,.0f}")
    table.add_row("output tokens/s", f"{result['output_tokens_per_s']:,.0f}")
    table.add_row(
        "prefix cache hits",
        f"{cache['hit_tokens']:,} of {cache['query_tokens']:,} tokens ({cache['hit_rate']:.2%})",
    )
    for name, value in tier_lines(result.get("tiers", [])):
        table.add_row(name, value)
    table.add_row("preemptions", f"{result['preemptions']:,}")
    cost = result.get("cost")
    for name, value in () if cost is None else cost_lines(cost):
        table.add_row(name, value)
    return table


def _roles(roles: list[RoleStats]) -> Table:
    table = Table(title="roles", title_justify="left", expand=True)
    for column in ROLE_HEAD:
        table.add_column(column, justify="left" if column in ROLE_HEAD[:2] else "right")
    for row in roles:
        table.add_row(*role_cells(row))
    return table


def _ttft_parts(transfers: TransferStats) -> Table:
    table = Table(title="parts of TTFT, ms", title_justify="left", expand=True)
    table.add_column("")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, stats in transfers["ttft_parts_ms"].items():
        label = name.replace("_", " ")
        table.add_row(label, *(figure(value) for value in in_columns(stats)))
    return table


def _links(transfers: TransferStats) -> Table:
    table = Table(title=transfer_title(transfers), title_justify="left", expand=True)
    for column in LINK_HEAD:
        table.add_column(column, justify="left" if column == LINK_HEAD[0] else "right")
    for link in transfers["links"][:_WORKERS_SHOWN]:
        table.add_row(*link_cells(link))
    return table


def _oracle(stats: OracleStats) -> Table:
    table = Table(title=oracle_title(stats), title_justify="left", show_header=False, box=None)
    table.add_column()
    table.add_column(justify="right")
    for name, value in oracle_lines(stats):
        table.add_row(name, value)
    return table


def _workers(workers: list[WorkerStats]) -> Table:
    table = Table(title="workers", title_justify="left", expand=True)
    table.add_column("name", overflow="ellipsis", no_wrap=True)
    for column in ("requests", "KV tokens", "busy", "hit rate", "preempted"):
        table.add_column(column, justify="right")
    for worker in workers[:_WORKERS_SHOWN]:
        queries = worker["query_tokens"]
        table.add_row(
            worker["name"],
            f"{worker['requests']:,}",
            f"{worker['kv_capacity_tokens']:,}",
            f"{worker['busy_fraction']:.1%}",
            f"{worker['hit_tokens'] / queries:.1%}" if queries else "-",
            f"{worker['preemptions']:,}",
        )
    more = len(workers) - _WORKERS_SHOWN
    if more > 0:
        table.add_row(f"and {more} more", "", "", "", "", "")
    return table


def notes(result: Result) -> list[str]:
    """Whatever was not as asked, one line each: outcomes, trace rows, lateness, guesses."""
    lines = [
        f"{count:,} {outcome}"
        for outcome, count in result["outcomes"].items()
        if not outcome.startswith("completed")
    ]
    trace = result.get("trace")
    if trace is not None:
        lines.append(f"trace: {trace['read']:,} of {trace['rows']:,} rows read")
        if trace["clipped"]:
            lines.append(f"trace: {trace['clipped']:,} lengths of 0 raised to 1")
        if trace["out_of_order"]:
            lines.append(f"trace: {trace['out_of_order']:,} rows out of order, sorted by time")
        lines.extend(f"trace: skipped {reason}" for reason in trace["skipped"][:_SKIPPED_SHOWN])
        more = len(trace["skipped"]) - _SKIPPED_SHOWN
        if more > 0:
            lines.append(f"trace: and {more:,} more skipped rows, all in the JSON")
    client = result.get("client")
    if client is not None:
        lines.extend(_client_notes(client, result))
    return lines


def _client_notes(client: ClientStats, result: Result) -> Iterable[str]:
    yield (
        f"client: {client['requests_per_wall_s']:,.0f} requests per real second to "
        f"{client['url']}, clock {client['mode']}, times from the {client['figures_from']}"
    )
    late = client["lateness_ms"]
    if late["max"]:
        yield f"client: sent late by {figure(late['p50'])} ms p50, {figure(late['max'])} ms at most"
    for count, what in (
        (client["prompt_tokens_differ"], "prompts had another length at the server"),
        (client["output_tokens_differ"], "outputs had another length than asked for"),
        (client["stalls"], "stalls: the clock went on past a lease that was held"),
        (client["grace_jumps"], "jumps of the clock were guesses (requests without a lease)"),
    ):
        if count:
            yield f"client: {count:,} {what}"
    submitted = result["requests"]["submitted"] + result["warmup_requests"]
    server = client["server_requests"]
    if server is not None and server > submitted:
        legs = " (a prompt computed elsewhere is one more)" if "transfers" in result else ""
        yield (
            f"client: the server's ITL, preemptions and workers cover {server:,} requests{legs}, "
            f"of which these are {submitted:,}"
        )


def _notes(result: Result) -> list[Text]:
    return [Text(line, style="dim") for line in notes(result)]
