"""Pipeline stages: which layers each has. PURE."""

from dataclasses import replace
from itertools import accumulate, pairwise

from frontier_mock.cost.specs import ModelSpec, ParallelSpec


def vllm_split(num_layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage as vLLM 0.33 deals them out (`get_pp_indices`).

    What does not divide goes to the stages before the last, from the back.
    """
    each, extra = divmod(num_layers, stages)
    return tuple(each + (stages - 1 - extra <= stage < stages - 1) for stage in range(stages))


def sglang_split(num_layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage as SGLang 0.5.23 deals them out: the last ones have one more."""
    each, extra = divmod(num_layers, stages)
    return tuple(each + (stage >= stages - extra) for stage in range(stages))


def stage_layers(model: ModelSpec, parallel: ParallelSpec) -> tuple[int, ...]:
    """Layers of each stage. Raises ValueError for a split that is not one of this model."""
    if not parallel.stage_layers:
        if parallel.pp > model.num_layers:
            raise ValueError(f"pp is {parallel.pp}; {model.name} has {model.num_layers} layers")
        return vllm_split(model.num_layers, parallel.pp)
    layers = parallel.stage_layers
    if len(layers) != parallel.pp or sum(layers) != model.num_layers or min(layers) < 1:
        raise ValueError(
            f"stages of {', '.join(map(str, layers))} layers are not {parallel.pp} stages of the "
            f"{model.num_layers} layers of {model.name}"
        )
    return layers


def stage_models(model: ModelSpec, parallel: ParallelSpec) -> tuple[ModelSpec, ...]:
    """The model as each stage has it. Layers with a sliding window are spread over all depths."""
    if parallel.pp == 1:
        return (model,)
    ends = [0, *accumulate(stage_layers(model, parallel))]
    return tuple(_part(model, start, end) for start, end in pairwise(ends))


def _part(model: ModelSpec, start: int, end: int) -> ModelSpec:
    experts = model.experts
    if experts is not None:
        dense = min(max(experts.dense_layers - start, 0), end - start)
        experts = replace(experts, dense_layers=dense)
    before, after = (model.sliding_layers * at // model.num_layers for at in (start, end))
    return replace(model, num_layers=end - start, experts=experts, sliding_layers=after - before)
