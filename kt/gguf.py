"""A Llama folder as one GGUF file, which llama.cpp serves: the `gguf` package writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kt.errors import InputError
from kt.models import load_tokenizer

DTYPES = ("f32", "f16")

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: str | Path, target: str | Path, dtype: str = "f16", *, name: str | None = None) -> None:
    """Convert a Llama folder to GGUF: matrices in `dtype` (f16 or f32), norms in f32, tokenizer and chat template inside.

    `name` is what the file calls the model: the folder's name unless said.

    Raises InputError for another architecture, a tokenizer other than SentencePiece or GPT-2's BPE, or missing files.
    """
    import gguf

    folder = Path(folder)
    config = check_convertible(folder, dtype)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(target), "llama")
    _write_shape(writer, config, name or folder.name, dtype)
    _write_tokenizer(writer, folder, config)
    for place, tensor in _tensors(folder, config, dtype):
        writer.add_tensor(place, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_convertible(folder: str | Path, dtype: str = "f16") -> dict[str, Any]:
    """Return a folder's config if a GGUF can be made of it; InputError says what stands in the way. Reads no weights."""
    folder = Path(folder)
    config = _json(folder / "config.json")
    if config.get("model_type") != "llama" or config.get("attention_bias"):
        raise InputError(f"{folder}: {config.get('model_type')} models are converted by llama.cpp's own convert_hf_to_gguf.py")
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype}: choose one of {', '.join(DTYPES)}")
    _rope_theta(config)
    if not _is_sentencepiece(folder):
        _byte_level(folder)
    return config


def _is_sentencepiece(folder: Path) -> bool:
    """Say whether the tokenizer is SentencePiece's own file, as Llama 2's is; tokenizer.json may say the same beside it."""
    spec = _json(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else {}
    return (folder / "tokenizer.model").exists() and "ByteLevel" not in json.dumps(spec.get("pre_tokenizer"))


def _byte_level(folder: Path) -> dict[str, Any]:
    """Return a tokenizer.json whose texts are split as GPT-2's are."""
    spec = _json(folder / "tokenizer.json")
    if spec["model"].get("type") != "BPE" or "ByteLevel" not in json.dumps(spec.get("pre_tokenizer")):
        raise InputError(f"{folder}: the tokenizer is not byte-level BPE; convert with llama.cpp's own convert_hf_to_gguf.py")
    level = spec["pre_tokenizer"]
    if level.get("type") != "ByteLevel" or not level.get("use_regex", True) or level.get("add_prefix_space"):
        raise InputError(
            f"{folder}: the tokenizer splits texts otherwise than GPT-2's; convert with llama.cpp's own convert_hf_to_gguf.py"
        )
    return spec


def _write_shape(writer: Any, config: dict[str, Any], name: str, dtype: str) -> None:
    import gguf

    heads = config["num_attention_heads"]
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(_head_size(config))  # else llama.cpp takes hidden size / heads
    writer.add_value_length(_head_size(config))
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_rope_freq_base(_rope_theta(config))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if dtype == "f16" else gguf.LlamaFileType.ALL_F32)


def _head_size(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope_theta(config: dict[str, Any]) -> float:
    """Find the rotary base where older and newer configs keep it; scaled rotary embeddings are not converted."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise InputError("scaled rotary embeddings are converted by llama.cpp's own convert_hf_to_gguf.py")
    return float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)


def _write_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    if _is_sentencepiece(folder):
        _write_sentencepiece(writer, folder, config)
    else:
        _write_byte_level(writer, folder, config)


def _write_sentencepiece(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    import gguf
    from gguf.vocab import SentencePieceVocab

    try:
        pieces = [(text.decode(), score, kind) for text, score, kind in SentencePieceVocab(folder).all_tokens()]
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{folder}/tokenizer.model cannot be read: {error}") from error
    unused = [(f"[unused{i}]", -1000.0, gguf.TokenType.UNUSED) for i in range(len(pieces), config["vocab_size"])]
    texts, scores, kinds = zip(*pieces, *unused, strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    _write_special(writer, folder, config, {text: i for i, text in enumerate(texts)})


def _write_byte_level(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    import gguf

    spec = _byte_level(folder)
    model = spec["model"]
    added = {token["id"]: token for token in spec.get("added_tokens", [])}
    words = {index: word for word, index in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    size = config["vocab_size"]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([words.get(i, f"[unused{i}]") for i in range(size)])
    writer.add_token_types(
        [kinds.UNUSED if i not in words else kinds.CONTROL if i in added else kinds.NORMAL for i in range(size)]
    )
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in model["merges"]])
    _write_special(writer, folder, config, {token["content"]: token["id"] for token in added.values()})


def _write_special(writer: Any, folder: Path, config: dict[str, Any], ids: dict[str, int]) -> None:
    said = _json(folder / "tokenizer_config.json")

    def id_of(name: str) -> int | None:
        token = said.get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        return ids.get(content) if content else config.get(f"{name}_token_id")

    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if (found := id_of(name)) is not None:
            add(found)
    # What the files say and what transformers does differ between versions: as in training counts.
    tokenizer = load_tokenizer(folder)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(False)
    template = folder / "chat_template.jinja"
    text = template.read_text() if template.exists() else said.get("chat_template")
    if text:
        writer.add_chat_template(text)


def _tensors(folder: Path, config: dict[str, Any], dtype: str) -> Iterator[tuple[str, Any]]:
    """Yield GGUF name and array of every tensor, q and k rows permuted to llama.cpp's rotary layout."""
    import numpy
    from safetensors import safe_open

    heads = config["num_attention_heads"]
    rows_of = {"attn_q": heads, "attn_k": config.get("num_key_value_heads") or heads}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no safetensors files")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                renamed = _renamed(name)
                if renamed is None or (renamed == "output.weight" and config.get("tie_word_embeddings")):
                    continue
                array = tensors.get_tensor(name).float().numpy()
                part = renamed.split(".")[-2]
                if part in rows_of:
                    array = _permuted(array, rows_of[part])
                yield renamed, array.astype(numpy.float32 if array.ndim == 1 or dtype == "f32" else numpy.float16)


def _renamed(name: str) -> str | None:
    stem = name.removesuffix(".weight")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.weight"
    if stem.startswith("model.layers."):
        number, _, part = stem.removeprefix("model.layers.").partition(".")
        if part in _LAYER:
            return f"blk.{number}.{_LAYER[part]}.weight"
    if "rotary_emb" in name:
        return None
    raise InputError(f"tensor {name} has no place in a Llama GGUF")


def _permuted(array: Any, heads: int) -> Any:
    """Interleave the halves of each head: Hugging Face rotates (i, i + d/2), llama.cpp (2i, 2i + 1)."""
    size, width = array.shape
    return array.reshape(heads, 2, size // heads // 2, width).swapaxes(1, 2).reshape(size, width)


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; a Hugging Face Llama folder has this file") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    return loaded
