"""Everything an SGLang port serves, put together: the application and all that adds routes."""

from collections.abc import Sequence
from dataclasses import replace

from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import Ticket
from frontier_mock.serve.routing import Routes
from frontier_mock.serve.sglang_app import SglangApp
from frontier_mock.serve.sglang_control import ControlRoutes
from frontier_mock.serve.sglang_edges import EdgeRoutes
from frontier_mock.serve.sglang_encoders import EncoderRoutes
from frontier_mock.serve.sglang_http_counts import HttpCounts
from frontier_mock.serve.sglang_info import InfoRoutes
from frontier_mock.serve.sglang_keys import Keys
from frontier_mock.serve.sglang_metrics import SglangWorkerMetrics
from frontier_mock.serve.sglang_state import ServerState
from frontier_mock.serve.worker_metrics import WorkerMetrics
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.plan import front_of


def sglang_app(
    number: int,
    served: ServedModel,
    driver: Driver,
    folds: Sequence[WorkerMetrics | SglangWorkerMetrics],
    more: Sequence[Routes],
) -> SglangApp:
    """The application of the server whose first engine is `number`; `folds` are its ranks'.

    Whoever adds routes to SGLang's port (its control plane, say) adds them here: a class with
    `table()` that is handed the port's `state`.
    """
    front = front_of(served)
    served = replace(served, worker=number)
    state = ServerState(served)
    ranks = [fold for fold in folds if isinstance(fold, SglangWorkerMetrics)]
    by_worker = dict(zip(driver_ranks(number, front.num_dp_ranks), ranks, strict=False))

    def streams(ticket: Ticket) -> None:
        for flight in ticket.flights:
            fold = by_worker.get(flight.worker)
            if fold is not None:
                fold.streams([flight.rid])

    if front.enable_metrics:
        state.streams = streams
    http = HttpCounts()
    routes: list[Routes]
    if front.encoder.encodes_only:
        routes = [EncoderRoutes(served, driver, state), *more]
    else:
        routes = [
            InfoRoutes(served, driver, state, ranks, http),
            ControlRoutes(served, driver, state, ranks),
            EdgeRoutes(served, state),
            *more,
        ]
    keys = Keys(front.api_key, front.admin_api_key)
    return SglangApp(served, driver, state, keys, http, routes)


def driver_ranks(first: int, count: int) -> range:
    """Numbers of a server's engines: data-parallel ranks stand in a row."""
    return range(max(first, 0), max(first, 0) + count)
