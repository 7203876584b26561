"""The command line: parse, one call, print. Only click is loaded until a command is chosen."""

from __future__ import annotations

import importlib
import os
import sys

import click

from kt import __version__

COMMANDS = {
    "annotate": ("kt.cli.annotate", "Judge two methods' answers by hand, blind, in a page on this machine."),
    "build-data": ("kt.cli.build", "Build the training sets of both stages from a question-answer file."),
    "cache": ("kt.cli.cache", "Look into, carry, join and check the file that keeps every completion."),
    "check": ("kt.cli.check", "Check configs, prompts and data without a network."),
    "compare": ("kt.cli.compare", "Say whether two runs' or methods' numbers differ by more than chance."),
    "cost": ("kt.cli.cost", "Say what runs and the cache cost: tokens, time, dollars; what a rerun saves."),
    "demo": ("kt.cli.demo", "Make a world of facts that no model knows, and tiny models that live in it."),
    "doctor": ("kt.cli.doctor", "Say what this machine can run, and what is missing."),
    "evaluate": ("kt.cli.evaluate", "Compare generated answers: METEOR, BERTScore, judges, fact counts."),
    "export": ("kt.cli.export", "Merge an adapter into its base: safetensors, and GGUF for llama.cpp."),
    "generate": ("kt.cli.generate", "Answer questions with a base model and any of its adapters."),
    "prompt": ("kt.cli.prompt", "List and show the prompts as they are sent."),
    "report": ("kt.cli.report", "Write one HTML page about a run, or its tables."),
    "run": ("kt.cli.run", "Run a whole experiment, skipping what is up to date."),
    "serve": ("kt.cli.serve", "Serve a local model as an OpenAI-compatible endpoint."),
    "train": ("kt.cli.train", "Train one stage of an experiment: sft, ka or kc."),
}
"""Every command with its module and its line in the help, so that `kt --help` imports none of them."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the one command that is asked for."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        found: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="kt")
def kt() -> None:
    """Make a language model know its subject better, offline (KnowTuning).

    \b
    For example, with a vLLM server on this machine:
      kt build-data --backend vllm --base-url http://127.0.0.1:8000/v1 --model m \\
          --data qa.json --difficulty all --out runs/x
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line; an error that the user can act on is one sentence and its exit code."""
    sys.exit(_run(args))


def _run(args: list[str] | None) -> int:
    try:
        done = kt.main(args=args, prog_name="kt", standalone_mode=False)
        return done if isinstance(done, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nkt: stopped; everything received is kept: run the same command again to go on", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        from kt.errors import KtError

        if not isinstance(error, KtError):
            raise
        click.echo(f"kt: {error}", err=True)
        return error.exit_code
