"""Sizes derived from a model's configuration, against sizes that are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meter.work.vllm import facts
from meter.work.vllm.adapter import early_label, engine_facts

LLAMA_8B = SimpleNamespace(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    tie_word_embeddings=False,
    dtype="bfloat16",
)
MIXTRAL_8X7B = SimpleNamespace(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=32000,
    tie_word_embeddings=False,
    num_local_experts=8,
    num_experts_per_tok=2,
    dtype="bfloat16",
)


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [(LLAMA_8B, 8.03e9, 8.03e9), (MIXTRAL_8X7B, 46.7e9, 12.9e9)],
    ids=["Llama-3.1-8B", "Mixtral-8x7B"],
)
def test_parameters_are_those_published(config: Any, total: float, active: float) -> None:
    found = facts.parameters(config)
    assert found == pytest.approx(total, rel=0.005)
    assert facts.active_parameters(config, found) == pytest.approx(active, rel=0.005)


def test_experts_are_those_of_the_config() -> None:
    """Under the name that each family uses; one expert is none, one active expert is one."""
    assert (facts.routed_experts(MIXTRAL_8X7B), facts.active_experts(MIXTRAL_8X7B)) == (8, 2)
    assert (facts.routed_experts(LLAMA_8B), facts.active_experts(LLAMA_8B)) == (None, None)
    scout = SimpleNamespace(num_local_experts=16, num_experts_per_tok=1)
    assert (facts.routed_experts(scout), facts.active_experts(scout)) == (16, 1)
    gemma = SimpleNamespace(num_experts=128, top_k_experts=8)
    assert (facts.routed_experts(gemma), facts.active_experts(gemma)) == (128, 8)
    assert facts.routed_experts(SimpleNamespace(num_experts=1)) is None
    assert facts.routed_experts(SimpleNamespace(num_experts=[8, 8])) is None


def test_what_a_config_does_not_say_is_unknown() -> None:
    """A wrong prior is worse than none."""
    assert facts.parameters(SimpleNamespace(hidden_size=4096)) is None
    assert facts.parameters(SimpleNamespace(**vars(LLAMA_8B), kv_lora_rank=512)) is None
    assert facts.active_parameters(LLAMA_8B, None) is None
    assert facts.item_bytes("mystery") is None


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("bfloat16", 2), ("torch.float32", 4), ("fp8_e4m3", 1), (SimpleNamespace(itemsize=2), 2)],
)
def test_item_bytes(dtype: object, size: int) -> None:
    assert facts.item_bytes(dtype) == size


def config(directory: str, **more: Any) -> Any:
    model = SimpleNamespace(
        model=directory,
        served_model_name="llama",
        hf_text_config=LLAMA_8B,
        dtype="torch.bfloat16",
        quantization=None,
        use_mla=False,
        get_head_size=lambda: 128,
        get_total_num_kv_heads=lambda: 8,
    )
    vars(model).update(more)
    return SimpleNamespace(
        model_config=model,
        cache_config=SimpleNamespace(cache_dtype="auto"),
        parallel_config=SimpleNamespace(
            data_parallel_index=1,
            tensor_parallel_size=2,
            pipeline_parallel_size=1,
            data_parallel_size=2,
        ),
    )


def test_engine_facts_of_a_usual_engine() -> None:
    known = engine_facts(config("org/llama"))
    assert (known["engine"], known["tp"], known["dp"], known["ep"]) == ("1", 2, 2, 1)
    assert "experts_total" not in known
    assert (known["model"], known["dtype"], known["head_dim"]) == ("llama", "bfloat16", 128)
    assert known["kv_bytes_per_token"] == 2 * 8 * 128 * 2 * 32
    assert known["weight_bytes"] == pytest.approx(16.06e9, rel=0.005)


def test_engine_facts_of_a_mixture_of_experts() -> None:
    """With expert parallelism its experts lie over all tensor- and data-parallel ranks."""
    mixture = config("org/mixtral", hf_text_config=MIXTRAL_8X7B)
    mixture.parallel_config.enable_expert_parallel = True
    known = engine_facts(mixture)
    assert (known["experts_total"], known["experts_active"], known["ep"]) == (8, 2, 4)


def test_a_checkpoint_on_disk_is_weighed(tmp_path: Path) -> None:
    """Stored as bfloat16, served as float32: twice the bytes, the same parameters."""
    (tmp_path / "a.safetensors").write_bytes(bytes(600))
    (tmp_path / "b.safetensors").write_bytes(bytes(400))
    known = engine_facts(config(str(tmp_path), dtype="torch.float32"))
    assert (known["params"], known["weight_bytes"]) == (500, 2000)


def test_quantised_weights_are_not_guessed() -> None:
    known = engine_facts(config("org/llama", quantization="awq"))
    assert "weight_bytes" not in known
    assert known["params"] == pytest.approx(8.03e9, rel=0.005)


def test_a_config_of_another_shape_gives_fewer_facts() -> None:
    """Never an exception: the label and the process are always known."""
    known = engine_facts(SimpleNamespace(parallel_config=SimpleNamespace()))
    assert known["engine"] == "0"
    assert "pid" in known and "model" not in known


@pytest.mark.parametrize(
    ("process", "label"),
    [("EngineCore", "0"), ("EngineCore_DP3", "3"), ("MainProcess", None), ("VllmWorker-0", None)],
)
def test_an_engine_process_is_known_by_its_name(process: str, label: str | None) -> None:
    assert early_label(process) == label
