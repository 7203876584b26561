"""A local Hugging Face model, with an adapter or without: from files on this machine only, never from pickles."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt.errors import EngineError, InputError
from kt.weights import combined_fingerprint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(eq=False)
class LocalModel:
    """A model ready for inference; `fingerprint` identifies its weights, `name` is for people.

    `scoring_path` says how facts are scored on it, once the first have been.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    device: "torch.device"
    fingerprint: str
    name: str
    scoring_path: str = ""

    @property
    def context_length(self) -> int | None:
        """The most tokens that a sequence may have, or None where the config names no limit."""
        config = self.model.config.get_text_config()
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"):
            if isinstance(limit := getattr(config, key, None), int) and limit > 0:
                return limit
        return None


def load(
    path: str | Path,
    adapter: str | Path | None = None,
    *,
    dtype: str = "float32",
    device: str | None = None,
    threads: int | None = None,
) -> LocalModel:
    """Load a model folder, and an adapter folder on top of it, for inference.

    `device` is `cpu`, `cuda`, `cuda:1`, ...; by default the accelerator where there is one. `threads` sets torch's
    threads for the whole process. Raises InputError for folders that are no model or do not fit each other,
    EngineError where memory does not suffice.
    """
    path = Path(path)
    _check_folder(path, "config.json", "pytorch_model*.bin")
    if adapter is not None:
        _check_folder(Path(adapter), "adapter_config.json", "adapter_model.bin")
    torch = _torch()
    if threads is not None:
        torch.set_num_threads(threads)
    place = _device(device)
    with _memory_errors(path, place, dtype):
        tokenizer = _load_tokenizer(path)
        model = _load_weights(path, _dtype(dtype))
        _check_vocabulary(path, model, tokenizer)
        if adapter is not None:
            model = _add_adapter(model, path, Path(adapter))
        model.to(place).eval().requires_grad_(False)
    name = path.resolve().name if adapter is None else f"{path.resolve().name}+{Path(adapter).resolve().name}"
    return LocalModel(model, tokenizer, place, combined_fingerprint(path, adapter), name)


def load_trainable(
    path: str | Path,
    adapter: str | Path | None,
    lora: dict[str, Any] | None,
    *,
    dtype: str = "float32",
    quantization: str = "none",
) -> tuple[Any, Any]:
    """Load a model folder for training: (model, tokenizer), on the CPU; the trainer moves it.

    With `adapter`, that adapter goes on; else a new one is begun by PEFT's LoraConfig settings in `lora`, drawn from
    torch's seed; with neither, all weights train. Adapters are float32 whatever the base. Raises InputError, EngineError.
    """
    path = Path(path)
    _check_folder(path, "config.json", "pytorch_model*.bin")
    if adapter is not None:
        _check_folder(Path(adapter), "adapter_config.json", "adapter_model.bin")
    torch = _torch()
    with _memory_errors(path, torch.device("cpu"), dtype):
        tokenizer = _load_tokenizer(path)
        model = _load_weights(path, _dtype(dtype), **_quantized(quantization, _dtype(dtype)))
        _check_vocabulary(path, model, tokenizer)
        if quantization != "none":
            from peft import prepare_model_for_kbit_training

            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # as the trainer says
        if adapter is not None:
            model = _add_adapter(model, path, Path(adapter), trainable=True)
        elif lora is not None:
            model = _new_adapter(model, lora)
    model.config.use_cache = False
    return model, tokenizer


def _quantized(quantization: str, dtype: "torch.dtype") -> dict[str, Any]:
    """Return what loads the base in 4 bits (QLoRA), where bitsandbytes runs."""
    if quantization == "none":
        return {}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise EngineError("quantization: nf4 needs bitsandbytes: pip install 'kt[qlora]', or quantization: none") from None
    from transformers import BitsAndBytesConfig

    settings: dict[str, Any] = {"bnb_4bit_compute_dtype": dtype, "bnb_4bit_use_double_quant": True}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **settings)}


def _new_adapter(model: Any, lora: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model

    try:
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    except (TypeError, ValueError) as error:
        raise InputError(f"lora: {_first_line(error)}; its keys are those of PEFT's LoraConfig") from None


def load_tokenizer(path: str | Path) -> Any:
    """Load the tokenizer of a model folder, without the model; InputError where there is none."""
    return _load_tokenizer(Path(path))


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out; but for an accelerator's, torch says so only in the words of a RuntimeError."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise EngineError("this needs torch and transformers: pip install 'kt[train]'") from None
    return torch


def _check_folder(path: Path, config: str, pickles: str) -> None:
    if not os.path.isdir(path):  # unlike Path.is_dir, false for a name that is too long
        hint = "transformers models are folders" if os.path.isfile(path) else "no such folder"
        raise InputError(f"no model at {path}: {hint}; give a folder with {config} and *.safetensors")
    if not (path / config).is_file():
        raise InputError(f"{path} has no {config}" + _other_kind(path))
    if not any(path.glob("*.safetensors")):
        pickled = any(path.glob(pickles))
        why = "its weights are pickles (.bin), which can run code: save it again with save_pretrained" if pickled else ""
        raise InputError(f"{path} has no *.safetensors" + (f"; {why}" if why else ": is the folder complete?"))


def _other_kind(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return ": it is an adapter; name its base model, and this folder as the adapter"
    if (path / "config.json").is_file():
        return ": it is a whole model, not an adapter"
    return ": it is not a model folder"


def _dtype(name: str) -> "torch.dtype":
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is unknown: choose one of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(_torch(), name)
    return dtype


def _device(name: str | None) -> "torch.device":
    torch = _torch()
    if name is None:
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: {_first_line(error)}") from None


def _load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise InputError(f"the tokenizer in {path} cannot be loaded: {_first_line(error)}") from None


def _load_weights(path: Path, dtype: "torch.dtype", **options: Any) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below in one sentence
            **options,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"the model in {path} cannot be loaded: {_first_line(error)}") from None
    model, info = loaded
    _check_weights(path, info)
    return model


def _check_weights(path: Path, info: dict[str, Any]) -> None:
    """Refuse what transformers would fill with random numbers."""
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{path} lacks {len(missing)} weights that its config names, the first {missing[0]}")
    if mismatched := sorted(info["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise InputError(
            f"weights and config in {path} do not belong together: {name} is {[*stored]}, config.json says {[*wanted]}"
        )


def _check_vocabulary(path: Path, model: Any, tokenizer: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise InputError(
            f"tokenizer and model in {path} do not belong together: the tokenizer's token ids go up to {highest}, "
            f"the model knows {rows} tokens; copy the tokenizer files that came with the weights"
        )


def _add_adapter(model: Any, path: Path, adapter: Path, *, trainable: bool = False) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    misfit = f"adapter {adapter} does not fit the model {path}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is checked below, as an error
            adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable, local_files_only=True)
            # Loaded again because only this call tells which tensors found no place.
            result = adapted.load_adapter(str(adapter), adapted.active_adapter, is_trainable=trainable)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{misfit}: {_first_line(error)}") from None
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{misfit}: {_mismatch(error)}; use the base model that it was trained on") from None
    if adapted.active_peft_config.is_prompt_learning:
        raise InputError(f"adapter {adapter} is of type {adapted.active_peft_config.peft_type.value}: use a LoRA adapter")
    strays = sorted({*result.missing_keys, *result.unexpected_keys})
    if strays:
        raise InputError(f"{misfit}: {len(strays)} tensors differ, the first {strays[0]}; use the base it was trained on")
    return adapted


def _mismatch(error: RuntimeError) -> str:
    """Torch lists every tensor, one a line; the first says enough."""
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    return lines[0].rstrip(".") if lines else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


@contextmanager
def _memory_errors(path: Path, device: "torch.device", dtype: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = "use a smaller model" if dtype != "float32" else "use dtype bfloat16 (half of float32) or a smaller model"
        raise EngineError(f"not enough memory on {device} to load {path}: {smaller}, or another device") from None
