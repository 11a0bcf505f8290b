"""vLLM's real scheduler with a fake executor: an engine that computes nothing.

Runs in the vLLM environment. It does what ``EngineCore`` does (``step``, and with asynchronous
scheduling ``step_with_batch_queue``) but the model's answers are drawn from a seeded generator. So
asynchronous scheduling, speculation and preemption happen here at will, which the CPU build of vLLM
never does.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, SpeculativeConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16
STOP_TOKEN = 7
VOCABULARY = 1000


@dataclass(frozen=True)
class Setup:
    """What the engine is like. ``blocks``: KV blocks of 16 tokens; few of them force preemption."""

    model: str
    asynchronous: bool = False
    speculate: int = 0
    blocks: int = 4096
    running: int = 32
    budget: int = 256
    context: int = 2048
    stop_share: float = 0.01


def vllm_config(setup: Setup) -> VllmConfig:
    speculative = None
    if setup.speculate:
        speculative = SpeculativeConfig(
            method="ngram",
            num_speculative_tokens=setup.speculate,
            prompt_lookup_max=2,
            prompt_lookup_min=1,
        )
    config = VllmConfig(
        model_config=ModelConfig(model=setup.model, dtype="float32", max_model_len=setup.context),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=True),
        scheduler_config=SchedulerConfig(
            max_num_seqs=setup.running,
            max_num_batched_tokens=setup.budget,
            max_model_len=setup.context,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            async_scheduling=False,
        ),
        speculative_config=speculative,
    )
    # The CPU platform switches asynchronous scheduling off; the scheduler itself runs anywhere.
    config.scheduler_config.async_scheduling = setup.asynchronous
    config.cache_config.num_gpu_blocks = setup.blocks
    return config


class FakeEngine:
    """One scheduler and the loop around it. ``self.log`` is what the scheduler itself says of each
    step with somebody in it: ``{request: (tokens, context)}``."""

    def __init__(self, setup: Setup, seed: int) -> None:
        self.setup = setup
        self.random = random.Random(seed)
        config = vllm_config(setup)
        attention = FullAttentionSpec(
            block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32
        )
        cache = KVCacheConfig(
            num_blocks=setup.blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], attention)],
        )
        self.scheduler = config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=cache,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            hash_block_size=BLOCK,
            log_stats=True,
        )
        hash_fn = get_hash_fn_by_name("sha256")
        init_none_hash(hash_fn)
        self._hasher = get_request_block_hasher(BLOCK, hash_fn)
        self._queue: deque[tuple[Any, dict[str, bool]]] = deque()
        self.aborts: list[str] = []
        self.requests: dict[str, Request] = {}
        self.cached: dict[str, int] = {}
        self.log: list[dict[str, tuple[int, int]]] = []

    def add(self, name: str, parent: str, prompt: list[int], max_tokens: int, **more: Any) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **more)
        sampling.stop_token_ids = [STOP_TOKEN]
        sampling._all_stop_token_ids = {STOP_TOKEN}
        core = EngineCoreRequest(
            request_id=name,
            external_req_id=parent,
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=sampling,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        request = Request.from_engine_core_request(core, self._hasher)
        self.requests[name] = request
        self.scheduler.add_request(request)

    def abort(self, names: list[str]) -> None:
        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)

    @property
    def busy(self) -> bool:
        return bool(self._queue) or self.scheduler.has_requests()

    def step(self) -> None:
        if self.setup.asynchronous:
            self._step_with_queue()
        elif self.scheduler.has_requests():
            output, samples = self._schedule()
            self._update(output, samples)
            if self.setup.speculate and output.num_scheduled_tokens:
                self.scheduler.update_draft_token_ids(self._drafts(output))

    def _step_with_queue(self) -> None:
        """As ``EngineCore.step_with_batch_queue`` with two batches: schedule ahead, then wait."""
        if self.scheduler.has_requests():
            output, samples = self._schedule()
            self._queue.append((output, samples))
            if len(self._queue) < 2 and (
                output.num_scheduled_tokens or self.scheduler.has_requests()
            ):
                return
        if self._queue:
            self._update(*self._queue.popleft())

    def _schedule(self) -> tuple[Any, dict[str, bool]]:
        """A scheduled batch, and for each request in it whether it samples a token."""
        output = self.scheduler.schedule()
        if output.num_scheduled_tokens:
            self.log.append(work_of(output))
        for fresh in output.scheduled_new_reqs:
            self.cached.setdefault(fresh.req_id, fresh.num_computed_tokens)
        return output, {
            name: not self.requests[name].is_prefill_chunk for name in output.num_scheduled_tokens
        }

    def _update(self, output: Any, samples: dict[str, bool]) -> None:
        if self.aborts:
            self.abort(self.aborts)
            self.aborts = []
        names = list(output.num_scheduled_tokens)
        self.random.shuffle(names)
        sampled = [self._sample(output, name) if samples[name] else [] for name in names]
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=sampled,
            ),
        )

    def _sample(self, output: Any, name: str) -> list[int]:
        drafts = len(output.scheduled_spec_decode_tokens.get(name, ()))
        return [self._token() for _ in range(1 + self.random.randint(0, drafts))]

    def _token(self) -> int:
        if self.random.random() < self.setup.stop_share:
            return STOP_TOKEN
        return self.random.randrange(STOP_TOKEN + 1, VOCABULARY)

    def _drafts(self, output: Any) -> DraftTokenIds:
        names = [name for name in output.num_scheduled_tokens if self.random.random() < 0.8]
        drafts = [
            [self._token() for _ in range(self.random.randint(1, self.setup.speculate))]
            for _ in names
        ]
        return DraftTokenIds(names, drafts)


def work_of(output: Any) -> dict[str, tuple[int, int]]:
    """``{request: (tokens, context)}`` as the scheduler tells its workers."""
    return {
        name: (output.num_scheduled_tokens[name], context) for name, context in _contexts(output)
    }


def _contexts(output: Any) -> Iterator[tuple[str, int]]:
    for fresh in output.scheduled_new_reqs:
        yield fresh.req_id, fresh.num_computed_tokens
    known = output.scheduled_cached_reqs
    yield from zip(known.req_ids, known.num_computed_tokens, strict=True)
