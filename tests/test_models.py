"""Loading local models: what fits loads, what does not is named."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from scoring_models import save_adapter, save_model

from kt.errors import InputError
from kt.models import load
from kt.weights import combined_fingerprint


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def adapter(llama, tmp_path_factory):
    return save_adapter(tmp_path_factory.mktemp("adapters") / "tiny-lora", llama)


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


def logits(local):
    with torch.no_grad():
        return local.model(torch.tensor([[5, 6, 7]], device=local.device)).logits.float()


def test_a_model_is_ready_for_inference(llama):
    local = load(llama, device="cpu")
    assert local.name == "tiny-llama"
    assert local.fingerprint == combined_fingerprint(llama)
    assert local.device == torch.device("cpu")
    assert local.context_length == 128
    assert not local.model.training
    assert not any(parameter.requires_grad for parameter in local.model.parameters())
    assert {parameter.dtype for parameter in local.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_as_asked(llama, dtype):
    assert next(load(llama, dtype=dtype).model.parameters()).dtype == getattr(torch, dtype)


def test_threads_are_as_asked(llama):
    before = torch.get_num_threads()
    try:
        load(llama, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_an_adapter_changes_the_model_and_its_identity(llama, adapter):
    plain, adapted = load(llama), load(llama, adapter)
    assert adapted.name == "tiny-llama+tiny-lora"
    assert adapted.fingerprint == combined_fingerprint(llama, adapter) != plain.fingerprint
    assert not torch.allclose(logits(plain), logits(adapted), rtol=1e-2)
    assert not any(parameter.requires_grad for parameter in adapted.model.parameters())


def test_an_adapters_weights_are_those_in_its_file(llama, adapter):
    """Against the definition of LoRA: W + B A alpha / r, added by hand."""
    expected, adapted = load(llama), load(llama, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for key in (key for key in tensors if "lora_A" in key):
        module = expected.model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        module.weight.data += tensors[key.replace("lora_A", "lora_B")] @ tensors[key] * 16 / 4
    assert torch.allclose(logits(expected), logits(adapted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no such folder; give a folder with config.json"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json: it is not a model folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "novel"}'), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no \*.safetensors: is the folder complete"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\1" * 99), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "the tokenizer in .* cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "the tokenizer in .* cannot be loaded"),
    ],
)
def test_a_broken_folder_is_named(copy, spoil, message):
    spoil(copy)
    with pytest.raises(InputError, match=message) as caught:
        load(copy)
    assert str(copy) in str(caught.value)


def test_pickles_are_refused(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pickles \(.bin\), which can run code: save it again"):
        load(copy)


def test_code_in_the_folder_is_never_run(copy, tmp_path):
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "novel", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot be loaded"):
        load(copy)
    assert not (tmp_path / "ran").exists()


def test_a_missing_tensor_is_not_made_up(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights .* model.layers.1.mlp.up_proj.weight"):
        load(copy)


def test_another_models_config_is_refused(copy):
    config = json.loads((copy / "config.json").read_text()) | {"intermediate_size": 50}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"do not belong together: model.layers.0.mlp.\w+.weight is .*48.* says .*50"):
        load(copy)


def test_another_models_tokenizer_is_refused(copy):
    save_model(copy, vocab_size=300)
    with pytest.raises(InputError, match=r"tokenizer and model in .* do not belong together: .* 399, the model knows 300"):
        load(copy)


def test_an_adapter_for_another_width_is_refused(llama, tmp_path):
    other = save_model(tmp_path / "wide", hidden_size=64)
    adapter = save_adapter(tmp_path / "lora", other)
    with pytest.raises(InputError, match=r"does not fit the model .*size mismatch.*trained on") as caught:
        load(llama, adapter)
    assert "\n" not in str(caught.value)


def test_an_adapter_for_a_deeper_model_is_refused(llama, tmp_path):
    """PEFT itself drops the tensors it has no place for without a word."""
    other = save_model(tmp_path / "deep", num_hidden_layers=3)
    adapter = save_adapter(tmp_path / "lora", other)
    with pytest.raises(InputError, match=r"does not fit the model .* 4 tensors differ, the first .*layers.2"):
        load(llama, adapter)


def test_an_adapter_for_another_architecture_is_refused(llama, tmp_path):
    adapter = save_adapter(tmp_path / "lora", save_model(tmp_path / "gpt2", "gpt2"), targets=["c_attn"])
    with pytest.raises(InputError, match=r"does not fit the model .*[Tt]arget modules"):
        load(llama, adapter)


def test_an_adapter_without_weights_is_named(llama, adapter, tmp_path):
    broken = shutil.copytree(adapter, tmp_path / "broken")
    (broken / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"broken has no \*.safetensors"):
        load(llama, broken)


def test_model_and_adapter_confused_are_told_apart(llama, adapter):
    with pytest.raises(InputError, match="it is an adapter; name its base model"):
        load(adapter)
    with pytest.raises(InputError, match="it is a whole model, not an adapter"):
        load(llama, llama)


def test_unknown_dtype_and_device_are_named(llama):
    with pytest.raises(InputError, match="dtype 'int8' is unknown: choose one of float32"):
        load(llama, dtype="int8")
    with pytest.raises(InputError, match="device 'tpu' cannot be used here"):
        load(llama, device="tpu")


def test_too_little_memory_is_a_sentence(llama, tmp_path):
    """A real shortage: the process may take 10 MB more than it holds, the model wants 40 MB."""
    large = save_model(tmp_path / "large", intermediate_size=50_000)
    code = """
import resource, sys, torch, transformers
from kt.errors import EngineError
from kt.models import load
load(sys.argv[1])
data = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (data + 10_000_000,) * 2)
try:
    load(sys.argv[2])
except EngineError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, llama, large], capture_output=True, text=True, check=True)
    assert f"not enough memory on cpu to load {large}: use dtype bfloat16" in done.stdout, done.stderr


def test_importing_it_loads_no_torch():
    code = "import kt.models, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
