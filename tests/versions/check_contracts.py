"""What the plugin relies on, looked up in the sources of every version of vLLM it is said to meter.

make test-vllm        (pytest alone does not collect this file: it fetches a gigabyte)
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from sources import VERSIONS, sources

from meter.work.vllm.adapter import _REASONS

pytestmark = pytest.mark.parametrize("version", VERSIONS)


@cache
def tree(version: str, path: str) -> ast.Module:
    return ast.parse((sources(version) / "vllm" / path).read_text(encoding="utf-8"))


def defined(version: str, path: str, name: str) -> ast.ClassDef:
    """A class of a module."""
    found = [n for n in ast.walk(tree(version, path)) if isinstance(n, ast.ClassDef)]
    (one,) = [node for node in found if node.name == name]
    return one


def method(of: ast.ClassDef, name: str) -> ast.FunctionDef:
    (one,) = [n for n in of.body if isinstance(n, ast.FunctionDef) and n.name == name]
    return one


def arguments(function: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in function.args.args]


def fields(of: ast.ClassDef) -> set[str]:
    """Its annotated fields, properties, and what its methods set on ``self``."""
    names = {n.target.id for n in of.body if isinstance(n, ast.AnnAssign) and _named(n.target)}
    names |= {n.name for n in of.body if isinstance(n, ast.FunctionDef) and n.decorator_list}
    for node in ast.walk(of):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def _named(node: ast.expr) -> bool:
    return isinstance(node, ast.Name)


def calls(node: ast.AST, name: str) -> list[int]:
    """The lines in which something of that name is called."""
    return [
        call.lineno
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and getattr(call.func, "attr", getattr(call.func, "id", None)) == name
    ]


def text_of(version: str, *paths: str) -> str:
    root = sources(version) / "vllm"
    files = [file for path in paths for file in _files(root / path)]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def test_the_factory_of_schedulers_is_called_once_after_the_plugins_load(version: str) -> None:
    """``patch_scheduler_factory``: patched by a plugin, it builds every engine's scheduler."""
    config = defined(version, "config/scheduler.py", "SchedulerConfig")
    assert arguments(method(config, "get_scheduler_cls")) == ["self"]
    start = method(defined(version, "v1/engine/core.py", "EngineCore"), "__init__")
    (loaded,), (chosen,) = calls(start, "load_general_plugins"), calls(start, "get_scheduler_cls")
    assert loaded < chosen
    everywhere = text_of(version, "v1", "config")
    assert len(re.findall(r"\.get_scheduler_cls\(", everywhere)) == 1


def test_a_scheduler_has_the_methods_that_are_wrapped(version: str) -> None:
    scheduler = defined(version, "v1/core/sched/scheduler.py", "Scheduler")
    assert arguments(method(scheduler, "schedule"))[:1] == ["self"]
    assert arguments(method(scheduler, "add_request")) == ["self", "request"]
    assert arguments(method(scheduler, "shutdown")) == ["self"]
    update = arguments(method(scheduler, "update_from_output"))
    assert update == ["self", "scheduler_output", "model_runner_output"]
    assert {"finished_req_ids", "running", "vllm_config"} <= fields(scheduler)


def test_a_step_says_what_is_read_of_it(version: str) -> None:
    output = "v1/core/sched/output.py"
    assert {
        *("num_scheduled_tokens", "total_num_scheduled_tokens", "scheduled_spec_decode_tokens"),
        *("finished_req_ids", "scheduled_new_reqs", "scheduled_cached_reqs", "preempted_req_ids"),
    } <= fields(defined(version, output, "SchedulerOutput"))
    assert "req_id" in fields(defined(version, output, "NewRequestData"))
    assert "resumed_req_ids" in fields(defined(version, output, "CachedRequestData"))
    results = fields(defined(version, "v1/outputs.py", "ModelRunnerOutput"))
    assert {"sampled_token_ids", "req_id_to_index"} <= results


def test_a_request_says_what_is_read_of_it(version: str) -> None:
    request = defined(version, "v1/request.py", "Request")
    made = arguments(method(request, "from_engine_core_request"))
    assert made[:2] == ["cls", "request"]
    assert {
        *("request_id", "num_prompt_tokens", "num_computed_tokens", "num_output_tokens"),
        *("num_tokens", "max_tokens", "status", "num_preemptions", "prefill_stats"),
        *("lora_request", "sampling_params"),
    } <= fields(request)
    taken = fields(defined(version, "v1/engine/__init__.py", "EngineCoreRequest"))
    assert "external_req_id" in taken


def test_every_end_has_a_reason(version: str) -> None:
    """Statuses that the plugin does not know would come under vLLM's own name."""
    status = defined(version, "v1/request.py", "RequestStatus")
    names = {n.targets[0].id for n in status.body if isinstance(n, ast.Assign)}  # type: ignore[attr-defined]
    assert {name for name in names if name.startswith("FINISHED_")} == set(_REASONS)


def test_dummy_passes_of_data_parallel_ranks_can_be_seen(version: str) -> None:
    core = defined(version, "v1/engine/core.py", "EngineCore")
    assert arguments(method(core, "execute_dummy_batch")) == ["self"]
    assert "scheduler" in fields(core)


def test_a_rank_has_the_label_that_vllms_metrics_give_it(version: str) -> None:
    parallel = fields(defined(version, "config/parallel.py", "ParallelConfig"))
    assert {
        *("data_parallel_index", "data_parallel_size", "tensor_parallel_size"),
        *("pipeline_parallel_size", "enable_expert_parallel"),
    } <= parallel


def test_an_engine_process_is_known_by_its_name_while_it_loads(version: str) -> None:
    assert re.search(
        r"[\"']EngineCore(_DP)?[\"']|f[\"']EngineCore_DP", text_of(version, "v1/engine")
    )


def test_plugins_are_found_by_their_entry_point_and_named_by_vllm_plugins(version: str) -> None:
    plugins = text_of(version, "plugins", "envs.py")
    assert "vllm.general_plugins" in plugins
    assert "VLLM_PLUGINS" in plugins


def test_the_servers_own_counters_have_the_names_that_are_scraped(version: str) -> None:
    """For a server without the plugin; prometheus_client adds ``_total``."""
    metrics = text_of(version, "v1/metrics")
    for name in (
        *("prompt_tokens", "prompt_tokens_cached", "generation_tokens", "request_success"),
        *("num_requests_running", "num_requests_waiting"),
    ):
        assert f'"vllm:{name}"' in metrics, name
