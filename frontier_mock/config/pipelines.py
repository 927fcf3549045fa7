"""What users say of pipeline stages, in words that both engines share."""

from collections.abc import Mapping

from frontier_mock.config.errors import ConfigError
from frontier_mock.cost.specs import ModelSpec, ParallelSpec
from frontier_mock.cost.stages import stage_layers


def read_partition(variable: str, environment: Mapping[str, str]) -> tuple[int, ...]:
    """Layers of each stage, as a variable lists them; empty without. Raises ConfigError."""
    text = environment.get(variable)
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{variable}: {text!r} is no list of numbers of layers") from None


def checked_stages(model: ModelSpec, parallel: ParallelSpec) -> ParallelSpec:
    """`parallel` itself. Raises ConfigError if its stages are not those of `model`, or combined
    with what is not simulated beside them."""
    if parallel.pp == 1:
        return parallel
    if parallel.dp > 1:
        raise ConfigError(
            f"pipeline-parallel-size: {parallel.pp} stages of {parallel.dp} attention ranks are "
            "not simulated; allowed: one of the two above 1"
        )
    try:
        stage_layers(model, parallel)
    except ValueError as error:
        raise ConfigError(f"pipeline-parallel-size: {error}") from None
    return parallel
