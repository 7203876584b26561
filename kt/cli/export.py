"""`kt export`."""

from __future__ import annotations

from typing import Any

import click

from kt.cli import options


@click.command(short_help="Merge an adapter into its base: safetensors, and GGUF for llama.cpp.")
@click.option("--model", type=click.Path(file_okay=False), required=True, metavar="PATH", help="The base model's folder.")
@click.option("--adapter", type=click.Path(file_okay=False), metavar="PATH", help="The LoRA adapter to merge. [default: none]")
@click.option("--out", type=click.Path(), required=True, metavar="DIR", help="A new folder for the merged model.")
@click.option("--gguf", type=click.Path(dir_okay=False), metavar="FILE", help="Also write this GGUF file (Llama models).")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="The folder's weights; auto: as the base.",
)
@click.option("--gguf-dtype", type=click.Choice(["f16", "f32"]), default="f16", show_default=True, help="The GGUF's weights.")
@click.option(
    "--template",
    type=click.Choice(["auto", "alpaca", "chat"]),
    default="auto",
    show_default=True,
    help="What a server puts around a question; auto: as the adapter was trained, else the base's own.",
)
@options.json_option
@options.quiet_option
def export(as_json: bool, quiet: bool, **given: Any) -> None:
    """Write a base model, with an adapter merged into it, as one model that any engine serves.

    The folder has safetensors, the base's tokenizer and the chat template that the adapter was trained with; `kt serve`
    takes it as it is.

    \b
    For example:
      kt export --model ./Llama-2-7b-hf --adapter runs/x/kc --out models/mine --gguf models/mine.gguf
      kt serve models/mine
      kt serve models/mine.gguf --backend llama-cpp
    """
    from kt.export import export as run

    result = run(**given)
    if as_json:
        said = {"out": str(result.folder), "gguf": str(result.gguf) if result.gguf else None}
        options.print_json({**said, "dtype": result.dtype, "fingerprint": result.fingerprint})
    elif not quiet:
        gguf = f" and {result.gguf}" if result.gguf else ""
        click.echo(f"merged into {result.folder} ({result.dtype}){gguf}; `kt serve {result.folder}` serves it")
