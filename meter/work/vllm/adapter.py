"""All that is known of vLLM itself, and of how its versions differ (read: 0.20 to 0.33).

vLLM builds its scheduler once, in ``EngineCore.__init__``, from the class that
``SchedulerConfig.get_scheduler_cls`` names; plugins load just before. That method is patched to
return a factory, and each scheduler it builds is tapped. Where versions differ:

* ``schedule`` takes no argument in 0.20 and 0.23, ``throttle_prefills`` from 0.26: passed through.
* ``preempted_req_ids`` may be ``None``; before 0.26 it leaves out cache resets. It is used as a
  hint only: whoever is missing from a step is found there.
* The V2 model runner reports resumed requests as new ones: "first" is decided by own state.
* ``Request`` lacks ``external_req_id``, so ``Request.from_engine_core_request`` is wrapped to keep
  it; else the id that the client saw is read off the engine's own.
* Statuses are compared by name: their numbers have moved.
* ``EngineCore.execute_dummy_batch`` (data parallel) has been there throughout.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from . import facts

MARK = "_joulemeter"
_PARENT = "_joulemeter_parent"

_REASONS = {
    "FINISHED_STOPPED": "stop",
    "FINISHED_LENGTH_CAPPED": "length",
    "FINISHED_ABORTED": "abort",
    "FINISHED_IGNORED": "length",
    "FINISHED_ERROR": "error",
    "FINISHED_REPETITION": "repetition",
}


# --- where to hook


def patch_scheduler_factory(attach: Callable[[Any, Any], None]) -> bool:
    """Have ``attach(scheduler, vllm_config)`` called for every scheduler that vLLM builds.

    ``attach`` must not raise. False where it was patched before (by any copy of this module).
    """
    from vllm.config import SchedulerConfig

    original = SchedulerConfig.get_scheduler_cls
    if getattr(original, MARK, False):
        return False

    def get_scheduler_cls(self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        chosen = original(self, *args, **kwargs)

        def build(*build_args: Any, **build_kwargs: Any) -> Any:
            scheduler = chosen(*build_args, **build_kwargs)
            config = getattr(scheduler, "vllm_config", build_kwargs.get("vllm_config"))
            attach(scheduler, config)
            return scheduler

        return build

    setattr(get_scheduler_cls, MARK, True)
    SchedulerConfig.get_scheduler_cls = get_scheduler_cls
    return True


def patch_requests() -> None:
    """Keep the id that the client saw on every ``Request`` (where that can be: else see
    ``parent_of``)."""
    from vllm.v1.request import Request

    original = getattr(Request.__dict__.get("from_engine_core_request"), "__func__", None)
    if original is None or getattr(original, MARK, False):
        return

    def from_engine_core_request(cls: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(cls, request, *args, **kwargs)
        setattr(made, _PARENT, getattr(request, "external_req_id", None))
        return made

    setattr(from_engine_core_request, MARK, True)
    Request.from_engine_core_request = classmethod(from_engine_core_request)


def patch_dummy_batch(clock: Callable[[], int], told: Callable[[Any, int, int], None]) -> None:
    """Have ``told(scheduler, t0_ns, t1_ns)`` called after each data-parallel dummy pass."""
    core = sys.modules.get("vllm.v1.engine.core")
    engine_core = getattr(core, "EngineCore", None)
    original = getattr(engine_core, "execute_dummy_batch", None)
    if engine_core is None or original is None or getattr(original, MARK, False):
        return

    def execute_dummy_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        t0_ns = clock()
        result = original(self, *args, **kwargs)
        told(getattr(self, "scheduler", None), t0_ns, clock())
        return result

    setattr(execute_dummy_batch, MARK, True)
    engine_core.execute_dummy_batch = execute_dummy_batch


# --- what a step says


def resumed_ids(output: Any) -> Iterable[str]:
    """Requests that this step takes up again after a preemption (V1 model runner)."""
    return getattr(output.scheduled_cached_reqs, "resumed_req_ids", None) or ()


def preempted_ids(output: Any) -> Iterable[str]:
    return getattr(output, "preempted_req_ids", None) or ()


def finished_ids(owner: Any) -> Set[str]:
    """Of a ``SchedulerOutput``: who finished since the step before it. Of a scheduler: since the
    last ``schedule()``; not in its interface, so possibly nobody: the next step tells as well."""
    finished: Set[str] | None = getattr(owner, "finished_req_ids", None)
    return finished or frozenset()


def nobody_runs(scheduler: Any) -> bool:
    """True where it is not certain that the engine will schedule again at once."""
    return not getattr(scheduler, "running", None)


def kept_tokens(output: Any, model_output: Any) -> dict[str, int]:
    """Tokens emitted by each request that speculated; after ``update_from_output``, which trims
    the sampled lists where a request stopped."""
    drafts = output.scheduled_spec_decode_tokens
    sampled, index = model_output.sampled_token_ids, model_output.req_id_to_index
    if not drafts or not sampled:
        return {}
    return {request: len(sampled[index[request]]) for request in drafts if request in index}


# --- what a request says


def parent_of(request: Any) -> str:
    """The id that the client saw; children of one ``n > 1`` request share it."""
    parent = getattr(request, _PARENT, None)
    if isinstance(parent, str):
        return parent
    own: str = request.request_id
    return re.sub(r"-[0-9a-f]{8}$", "", re.sub(r"^\d+_", "", own))


def adapter_name(request: Any) -> str | None:
    """The name of the request's LoRA adapter, which is the model that the client asked for."""
    return getattr(request.lora_request, "lora_name", None)


def cached_at_first(request: Any, context: int) -> int:
    """Prompt tokens found in the prefix cache, when the request is first scheduled."""
    stats = getattr(request, "prefill_stats", None)
    cached = getattr(stats, "num_cached_tokens", None)
    return cached if isinstance(cached, int) else context


def reason_of(request: Any) -> str:
    """Why the request ended. The front-end finds stop strings and then aborts: only it can tell
    that from a client's abort."""
    name: str = request.status.name
    reason = _REASONS.get(name, name.removeprefix("FINISHED_").lower())
    if reason == "abort" and getattr(request.sampling_params, "stop", None):
        return "stop_or_abort"
    return reason


# --- what an engine says


def engine_label(config: Any) -> str:
    """vLLM's own label ``engine``: the data-parallel rank."""
    return str(getattr(config.parallel_config, "data_parallel_index", 0))


def early_label(process_name: str) -> str | None:
    """The label by the name of an EngineCore process, before its config is known."""
    found = re.fullmatch(r"EngineCore(?:_DP(\d+))?", process_name)
    return (found.group(1) or "0") if found else None


def engine_facts(config: Any) -> Mapping[str, object]:
    """What the meter can use of the engine's configuration. Never raises; leaves out the unknown.

    Bytes and counts are those of the whole model, over all tensor- and pipeline-parallel ranks.
    """
    known: dict[str, object] = {"engine": engine_label(config), **process_facts()}
    for source in (_layout, _shape, _size, _kv):
        try:
            known.update(source(config))
        except Exception:  # a config of another shape: fewer facts
            continue
    return {name: value for name, value in known.items() if value is not None}


def process_facts() -> dict[str, object]:
    version = getattr(sys.modules.get("vllm"), "__version__", None)
    return {
        "pid": os.getpid(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "engine_version": f"vllm {version}" if version else "vllm",
    }


def _layout(config: Any) -> dict[str, object]:
    parallel = config.parallel_config
    tp, dp = parallel.tensor_parallel_size, parallel.data_parallel_size
    spread = getattr(parallel, "enable_expert_parallel", False)
    return {
        "tp": tp,
        "pp": parallel.pipeline_parallel_size,
        "dp": dp,
        "ep": tp * dp if spread else 1,
    }


def _shape(config: Any) -> dict[str, object]:
    model = config.model_config
    name = model.served_model_name or model.model
    text = model.hf_text_config
    return {
        "model": name if isinstance(name, str) else name[0],
        "dtype": str(model.dtype).rsplit(".", 1)[-1],
        "layers": text.num_hidden_layers,
        "heads": text.num_attention_heads,
        "head_dim": model.get_head_size(),
        "experts_total": facts.routed_experts(text),
        "experts_active": facts.active_experts(text),
    }


def _size(config: Any) -> dict[str, object]:
    """Parameters and weight bytes; from the checkpoint's size where it lies in a directory."""
    model = config.model_config
    text = model.hf_text_config
    total = facts.parameters(text)
    stored = facts.checkpoint_bytes(model.model)
    if model.quantization is not None:
        return {
            "params": total,
            "active_params": facts.active_parameters(text, total),
            "weight_bytes": stored,
        }
    dtype = getattr(text, "dtype", None) or getattr(text, "torch_dtype", None)
    stored_item = facts.item_bytes(dtype)
    if stored is not None and stored_item is not None:
        total = stored / stored_item
    item = facts.item_bytes(model.dtype)
    return {
        "params": total,
        "active_params": facts.active_parameters(text, total),
        "weight_bytes": total * item if total is not None and item is not None else None,
    }


def _kv(config: Any) -> dict[str, object]:
    model, name = config.model_config, config.cache_config.cache_dtype
    item = facts.item_bytes(model.dtype if name == "auto" else name)
    if item is None:
        return {}
    latent = bool(getattr(model, "use_mla", False))
    values = model.get_head_size() * (1 if latent else 2 * model.get_total_num_kv_heads())
    return {"kv_bytes_per_token": item * values * model.hf_text_config.num_hidden_layers}
