"""Trace files of a scenario, opened and read."""

from frontier_mock.config.errors import ConfigError
from frontier_mock.workload.readers import read_trace
from frontier_mock.workload.rows import TraceError, TraceRows
from frontier_mock.workload.specs import TraceSpec, WorkloadSpec
from frontier_mock.workload.synth import CONVERSATION, NUM_REQUESTS, synthesise_conversation


def load_trace(spec: WorkloadSpec, seed: int) -> TraceRows | None:
    """The rows of a trace workload; None for the other kinds, which need no file.

    `seed` is used where the trace is synthesised rather than read. Raises ConfigError if the file
    cannot be read or is not a trace we know.
    """
    if not isinstance(spec, TraceSpec):
        return None
    if spec.path == CONVERSATION:
        return synthesise_conversation(seed, spec.max_requests or NUM_REQUESTS)
    try:
        # Bytes that are no text spoil their own line only, which the census then names.
        with open(spec.path, encoding="utf-8", errors="backslashreplace", newline="") as lines:
            return read_trace(lines, spec.path, spec.format, spec.id_tokens)
    except OSError as error:
        raise ConfigError(f"trace {spec.path}: cannot be read: {error.strerror}") from None
    except TraceError as error:
        raise ConfigError(f"trace: {error}") from None
