"""The real vLLM 0.33 scheduler and KV cache manager behind a GPU that takes one step's time.

Nothing of vLLM is changed. The loop is `EngineCore.step` (sync) and `step_with_batch_queue` with a
queue of two (async), or with pipeline stages of as many as there are (sync) or one more (async),
with a virtual clock in place of the GPU: a step lasts STEP_NS on each stage from the moment it is
scheduled or the step before it leaves the stage, whichever is later; an empty one takes no time.
"""

import json
from bisect import insort
from collections import deque
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path

import torch
import vllm.v1.core.kv_cache_utils as kv_cache_utils
from cases import EOS, MODEL_LEN, STEP_NS, Arrival, Cancel, Case
from record import Chunk, Run, StepRecord, content_key
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    ModelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    VllmConfig,
)
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import get_block_hash, get_request_block_hasher
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
)
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from frontier_mock.serving.speculation import draws

kv_cache_utils.NONE_HASH = b""


def path_hash(block: tuple[bytes, tuple[int, ...], object]) -> bytes:
    """A block 'hash' that spells the whole prefix, in the keys that frontier_mock uses."""
    parent, tokens, _ = block
    return parent + content_key(tokens)


def write_model(folder: Path) -> Path:
    """A config.json that vLLM's ModelConfig accepts; no weights are ever read."""
    model = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 259,
        "max_position_embeddings": MODEL_LEN,
    }
    (folder / "config.json").write_text(json.dumps(model))
    return folder


def build_vllm_config(model_dir: Path) -> VllmConfig:
    """One configuration for all cases; `build_scheduler` sets what differs."""
    return VllmConfig(
        model_config=ModelConfig(
            model=str(model_dir),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=MODEL_LEN,
        ),
        scheduler_config=SchedulerConfig(
            max_num_seqs=8,
            max_num_batched_tokens=MODEL_LEN,
            max_model_len=MODEL_LEN,
            is_encoder_decoder=False,
        ),
        cache_config=CacheConfig(block_size=16),
        device_config=DeviceConfig(device="cpu"),
    )


def build_scheduler(config: VllmConfig, case: Case) -> Scheduler:
    """The scheduler that `vllm serve` would build for the case's settings."""
    spec = case.spec
    num_blocks = spec.num_blocks + 1
    config.scheduler_config = SchedulerConfig(
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_model_len=spec.max_model_len,
        is_encoder_decoder=False,
        enable_chunked_prefill=spec.enable_chunked_prefill,
        long_prefill_token_threshold=spec.long_prefill_token_threshold,
        policy=spec.policy,
        async_scheduling=spec.async_scheduling,
        watermark=spec.watermark,
        scheduler_reserve_full_isl=spec.reserve_full_isl,
        max_num_scheduled_tokens=spec.max_num_scheduled_tokens or None,
        max_num_active_seqs=spec.max_num_active_seqs or None,
        long_prefill_token_threshold_adaptive=spec.long_prefill_token_threshold_adaptive,
        prefill_schedule_interval=spec.prefill_schedule_interval,
    )
    config.parallel_config.pipeline_parallel_size = spec.pipeline_stages
    config.model_config.max_model_len = spec.max_model_len
    cache = config.cache_config
    cache.block_size = spec.block_size
    cache.enable_prefix_caching = spec.enable_prefix_caching
    cache.num_gpu_blocks = num_blocks
    attention = FullAttentionSpec(
        block_size=spec.block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    config.speculative_config = speculative_config(config, case)
    kind = AsyncScheduler if spec.async_scheduling else Scheduler
    scheduler = kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], attention)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=spec.block_size,
        log_stats=True,
    )
    if spec.speculation is not None:
        # That of a drafter with a cache of its own, which would need a checkpoint.
        scheduler.num_lookahead_tokens = spec.speculation.lookahead
    return scheduler


def speculative_config(config: VllmConfig, case: Case) -> SpeculativeConfig | None:
    """Drafts from look-up, the method that needs no drafter."""
    drafts = case.spec.speculation
    if drafts is None:
        return None
    return SpeculativeConfig(
        method="ngram_gpu" if case.spec.async_scheduling else "ngram",
        num_speculative_tokens=drafts.num_drafts,
        target_model_config=config.model_config,
        target_parallel_config=config.parallel_config,
    )


class VllmEngine:
    """EngineCore's loop on a virtual clock, writing down what the scheduler decides."""

    def __init__(self, config: VllmConfig, case: Case) -> None:
        self.case = case
        self.scheduler = build_scheduler(config, case)
        self.run = Run()
        self.now = 0
        self.stages_free = [0] * case.spec.pipeline_stages
        self.ends = [0] * case.spec.pipeline_stages
        self.inputs = deque(case.inputs)
        self.aborted_until = 0
        self.queue: deque[tuple[int, SchedulerOutput, ModelRunnerOutput]] = deque()
        self.depth = case.spec.pipeline_stages + case.spec.async_scheduling
        self.arrivals: list[Arrival] = []
        self.requests: dict[str, Request] = {}
        self.goals: dict[str, int] = {}
        self.verified: dict[str, int] = {}
        self.first_steps: dict[int, set[str]] = {}
        hasher = get_request_block_hasher(case.spec.block_size, path_hash)
        self.block_hasher = hasher if case.spec.enable_prefix_caching else None
        pool = self.scheduler.kv_cache_manager.block_pool
        self.free_blocks = pool.get_num_free_blocks
        self.pool = pool
        preempt = self.scheduler._preempt_request
        self.scheduler._preempt_request = partial(self.on_preempt, preempt)
        cached = pool.cached_block_hash_to_block
        cached.insert = partial(self.on_insert, cached, cached.insert)

    def on_preempt(self, preempt, request, *args, **kwargs) -> None:
        self.run.preemptions.append((self.now, int(request.request_id)))
        preempt(request, *args, **kwargs)

    def on_insert(self, cached, insert, key, block) -> None:
        if self.run.duplicated_ns is None and cached.get_one_block(key) is not None:
            self.run.duplicated_ns = self.now
        insert(key, block)

    def play(self) -> Run:
        """Until nothing is left: take inputs, step."""
        for _ in range(50_000):
            if not (self.scheduler.has_requests() or self.queue):
                if not self.inputs:
                    break
                self.now = max(self.now, self.inputs[0].t_ns)
            self.take_inputs()
            self.step()
        else:
            raise AssertionError("the run does not end")
        block = self.pool.free_block_queue.fake_free_list_head.next_free_block
        while block.next_free_block is not None:
            known = block.block_hash
            self.run.final_queue.append(None if known is None else bytes(get_block_hash(known)))
            block = block.next_free_block
        return self.run.settle()

    def take_inputs(self) -> None:
        while self.inputs and self.inputs[0].t_ns <= self.now:
            item = self.inputs.popleft()
            if isinstance(item, Cancel):
                self.cancel(item)
            else:
                self.add(item)

    def add(self, item: Arrival) -> None:
        params = SamplingParams(max_tokens=item.max_tokens, stop_token_ids=[EOS])
        request = Request(
            request_id=str(len(self.arrivals)),
            prompt_token_ids=item.prompt,
            sampling_params=params,
            pooling_params=None,
            arrival_time=item.t_ns / 1e9,
            priority=item.priority,
            block_hasher=self.block_hasher,
        )
        self.arrivals.append(item)
        self.requests[request.request_id] = request
        self.scheduler.add_request(request)

    def cancel(self, item: Cancel) -> None:
        request = self.requests.get(str(item.rid))
        if request is None or request.is_finished():
            return
        self.scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
        self.run.finishes.append((self.now, item.rid, "abort"))

    def step(self) -> None:
        """One call of the engine core's step function."""
        if self.scheduler.has_requests():
            self.queue.appendleft(self.schedule())
            if len(self.queue) < self.depth and (
                self.queue[0][1].total_num_scheduled_tokens or self.scheduler.has_requests()
            ):
                return
        elif not self.queue:
            return
        ready, output, result = self.queue.pop()
        self.now = max(self.now, ready)
        if self.case.spec.speculation is not None:
            result = self.verify(output, result)
        # The aborts queue: cancellations that came in while the step ran, before its output.
        for item in self.inputs:
            if item.t_ns > self.now:
                break
            if isinstance(item, Cancel):
                self.cancel(item)
        for engine_outputs in self.scheduler.update_from_output(output, result).values():
            for one in engine_outputs.outputs:
                rid = int(one.request_id)
                self.run.token_times.setdefault(rid, []).extend([self.now] * len(one.new_token_ids))
                if one.finish_reason is not None:
                    self.run.finishes.append((self.now, rid, str(one.finish_reason)))
                    self.follow_up(self.arrivals[rid].then)
        if self.case.spec.speculation is not None and not self.case.spec.async_scheduling:
            self.propose(output)

    def verify(self, output: SchedulerOutput, result: ModelRunnerOutput) -> ModelRunnerOutput:
        """What comes out of a step with drafts: as many tokens as our own draws accept."""
        spec = self.case.spec.speculation
        sampled = []
        for rid, tokens in zip(result.req_ids, result.sampled_token_ids, strict=True):
            request = self.requests[rid]
            drafts = len(output.scheduled_spec_decode_tokens.get(rid, ()))
            if not tokens:
                sampled.append([])
                continue
            accepted = 0
            if rid not in self.first_steps.get(id(output), ()):
                row = self.verified.setdefault(rid, 0)
                accepted = min(int(draws(spec, int(rid), row + 1).accepted[row]), drafts)
                self.verified[rid] = row + 1
            start = request.num_output_tokens
            planned = self.arrivals[int(rid)].output[start : start + 1 + accepted]
            sampled.append(planned + [7] * (1 + accepted - len(planned)))
        self.first_steps.pop(id(output), None)
        return replace(result, sampled_token_ids=sampled)

    def propose(self, output: SchedulerOutput) -> None:
        """The drafts for the next step, which vLLM's loop fetches after it has taken the output."""
        spec = self.case.spec.speculation
        rids = [rid for rid in output.num_scheduled_tokens if not self.requests[rid].is_finished()]
        drafts = []
        for rid in rids:
            row = self.verified.get(rid, 0)
            count = int(draws(spec, int(rid), row + 1).proposed[row])
            drafts.append([9] * count)
        self.scheduler.update_draft_token_ids(DraftTokenIds(rids, drafts))

    def follow_up(self, item: Arrival | None) -> None:
        """Put the client's next request among the inputs."""
        if item is not None:
            item = replace(item, t_ns=self.now + item.t_ns)
            for inputs in (self.inputs, self.case.inputs):
                insort(inputs, item, key=attrgetter("t_ns"))

    def schedule(self) -> tuple[int, SchedulerOutput, ModelRunnerOutput]:
        """Schedule a step and say when and with which tokens it will be ready."""
        output = self.scheduler.schedule()
        total = output.total_num_scheduled_tokens
        ready = self.through_stages(output) if total else max(self.now, self.ends[-1])
        self.ends.append(ready)
        if total:
            self.record(output)
        sampled = []
        for rid in output.num_scheduled_tokens:
            request = self.requests[rid]
            tokens: list[int] = []
            if not request.is_prefill_chunk:
                # One token after everything computed, this step included.
                position = request.num_computed_tokens - request.num_prompt_tokens
                planned = self.arrivals[int(rid)].output
                tokens = [planned[position] if position < len(planned) else 7]
            sampled.append(tokens)
        order = list(output.num_scheduled_tokens)
        return (
            ready,
            output,
            ModelRunnerOutput(
                req_ids=order,
                req_id_to_index={rid: i for i, rid in enumerate(order)},
                sampled_token_ids=sampled,
            ),
        )

    def through_stages(self, output: SchedulerOutput) -> int:
        """When the last stage is through. Decodes need the tokens of as many steps ago on the first
        one as there are stages."""
        start = self.now
        for rid, new in output.num_scheduled_tokens.items():
            past = self.requests[rid].num_computed_tokens - new
            if new == 1 and past >= self.goals.get(rid, past + 1):
                start = max(start, self.ends[-len(self.stages_free)])
        for stage, free in enumerate(self.stages_free):
            start = self.stages_free[stage] = max(start, free) + STEP_NS
        return start

    def record(self, output: SchedulerOutput) -> None:
        """Write the step down: its decodes as a count and a context sum, its chunks one by one."""
        admitted = {new.req_id for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        admitted |= set(cached.resumed_req_ids)
        decodes = kv_tokens = 0
        chunks = []
        first: set[str] = set()
        for rid, new in output.num_scheduled_tokens.items():
            request = self.requests[rid]
            past = request.num_computed_tokens - new
            if rid in admitted:
                self.goals[rid] = request.num_tokens
                self.run.admissions.append((self.now, int(rid), past, request.num_preemptions > 0))
            if past < self.goals[rid]:
                chunks.append(Chunk(int(rid), new, past))
                first.add(rid)
            else:
                decodes += 1
                kv_tokens += past + 1 if self.case.spec.speculation is None else new
                assert new == 1 or self.case.spec.speculation is not None
        self.first_steps[id(output)] = first
        self.run.steps.append(
            StepRecord(self.now, decodes, kv_tokens, tuple(chunks), self.free_blocks())
        )
