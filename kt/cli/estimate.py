"""How a dry run is printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from kt.cli import options

if TYPE_CHECKING:
    from kt.estimate import Estimate, StepEstimate


def print_estimate(plan: Estimate, as_json: bool, notes: Iterable[str] = ()) -> None:
    """Print what each step would ask, the sum, notes on it, and the first request in full."""
    if as_json:
        options.print_json(dataclasses.asdict(plan))
        return
    for step in plan.steps:
        click.echo(_line(step))
    click.echo(f"to send: {plan.to_send:,} calls, about {plan.tokens:,} tokens; {plan.price_line}")
    for note in notes:
        click.echo(note)
    if plan.first_request:
        click.echo("the first request in full:")
        options.print_json(plan.first_request)


def _line(step: StepEstimate) -> str:
    name = step.name if step.name == step.prompt else f"{step.name} ({step.prompt})"
    repeated = f"{step.repeated:7,} repeated, " if step.repeated else ""
    tokens = f"{step.prompt_tokens:,} + {step.completion_tokens:,} tokens"
    return f"{name:20} {step.calls:7,} calls, {step.cached:7,} cached, {repeated}{step.to_send:7,} to send, {tokens}"
