"""`kt evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from kt.cli import options

BACKENDS = ["vllm", "llama-cpp", "openai", "replay"]
CRITERIA = ["completeness", "factuality", "logicality"]
METRICS = "meteor,meteor-no-wordnet,bertscore,judge,score,facts"


@click.command(short_help="Compare generated answers: METEOR, BERTScore, judges, fact counts.")
@click.argument("config", required=False, type=click.Path(dir_okay=False))
@click.option(
    "--answers", multiple=True, metavar="NAME=DIR", help="A method's answers, from kt generate; the first is compared."
)
@options.data_option
@click.option("--out", type=click.Path(file_okay=False), metavar="DIR", help="A folder for this evaluation.")
@click.option(
    "--cache", type=click.Path(dir_okay=False), envvar="KT_CACHE", help="Keeps completions. [default: cache/completions.sqlite]"
)
@click.option("--metrics", metavar="LIST", help=f"Of {METRICS}. [default: meteor,bertscore,judge,facts]")
@click.option("--judge", metavar="NAME|PATH", help="The model that judges, scores and checks facts.")
@click.option("--backend", type=click.Choice(BACKENDS), help="Who serves the judge. [default: vllm]")
@click.option("--base-url", multiple=True, metavar="URL", help="A running server, ending in /v1; several share the load.")
@click.option("--revision", metavar="NAME", help="Which weights the judge's name stands for, if the server's change.")
@click.option("--api-key-env", metavar="VAR", help="The variable that holds the server's key. [default: KT_API_KEY]")
@click.option("--second-judge", metavar="NAME|PATH", help="Compares too; how far the two agree is reported.")
@click.option("--second-backend", type=click.Choice(BACKENDS), help="Who serves the second judge. [default: as the first]")
@click.option("--second-base-url", multiple=True, metavar="URL", help="The second judge's server. [default: as the first]")
@click.option("--criterion", "criteria", multiple=True, type=click.Choice(CRITERIA), help="Judge this. [default: all three]")
@click.option(
    "--rule", type=click.Choice(["default", "strict"]), help="What wins over two orders; strict: both must. [default: default]"
)
@click.option("--all-pairs", is_flag=True, default=None, help="Compare each with each, not the first with the others.")
@click.option("--compare", metavar="NAME", help="Compare this method with the others, not the first one.")
@click.option("--evidence", multiple=True, metavar="gold|none|PATH", help="Check facts against this. [default: gold]")
@click.option("--encoder", type=click.Path(), metavar="DIR", help="BERTScore's encoder, a local folder.")
@click.option("--encoder-layer", type=click.IntRange(min=1), metavar="N", help="Its layer. [default: 17 of roberta-large]")
@click.option("--offline", is_flag=True, default=None, help="Refuse every address but this machine's.")
@options.prompts_option
@options.limit_option
@click.option("--workers", type=click.IntRange(1, 4096), metavar="N", help="Records under way at once. [default: 64]")
@options.seed_option
@click.option("--attempts", type=click.IntRange(min=1), metavar="N", help="Tries for a usable verdict. [default: 3]")
@click.option("--timeout", type=float, metavar="SECONDS", help="Longest wait for one answer. [default: 600]")
@click.option("--retries", type=click.IntRange(min=0), metavar="N", help="Repeats after a 5xx. [default: 3]")
@click.option("--max-cost", type=float, metavar="DOLLARS", help="Stop before this is passed.")
@click.option("--max-model-len", type=int, metavar="N", help="Context of a server that kt starts.")
@click.option("--dry-run", is_flag=True, help="Say what would be asked and what it would cost; ask nothing.")
@options.json_option
@options.quiet_option
def evaluate(config: str | None, dry_run: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """Compare the answers of several methods to the same test questions.

    METEOR and BERTScore against the gold answers; a judge's win, tie and lose by completeness, factuality and logicality, in
    both orders; single scores from 1 to 10; correct and incorrect facts. All numbers go to OUT/results.json, with bootstrap
    intervals, and every verdict with its text to the folders beside it. Every judge's call is kept in the cache.
    CONFIG is a YAML file with the same keys, or an experiment's; options go before it.

    \b
    For example, with a vLLM server on this machine:
      kt evaluate --answers knowtuning=runs/kt --answers sft=runs/sft --data test.json \\
          --judge m --backend vllm --base-url http://127.0.0.1:8000/v1 \\
          --encoder models/roberta-large --out runs/evaluation
    or without WordNet, an encoder and a judge:
      kt evaluate --answers sft=runs/sft --data test.json --metrics meteor-no-wordnet --out runs/evaluation
    or from a config, with another judge:
      kt evaluate configs/evaluate-tiny.yaml --judge m --base-url http://127.0.0.1:8000/v1 --dry-run
      kt evaluate configs/evaluate-tiny.yaml --judge m --base-url http://127.0.0.1:8000/v1
    """
    settings = read_settings(config, given)
    if dry_run:
        _dry_run(settings, as_json)
        return
    run = _evaluate(settings, quiet)
    if as_json:
        options.print_json(run.results)
    elif not quiet:
        for line in table(run.results):
            click.echo(line)
        click.echo(_last_line(run))


def read_settings(config: str | None, given: dict[str, Any]) -> Any:
    """Make the evaluation's settings of a config file and the options given, which go before it."""
    from kt.config import EvaluateConfig, validate

    metrics = [name.strip() for name in given["metrics"].split(",")] if given["metrics"] else None
    values: dict[str, Any] = _of_file(config, metrics) if config else {}
    names = ["out", "cache", "rule", "all_pairs", "compare", "encoder", "encoder_layer", "offline", "prompts"]
    names += ["limit", "workers", "seed", "attempts", "timeout", "retries", "max_cost"]
    plain = {name: given[name] for name in names}
    plain |= {name: list(given[name]) or None for name in ("data", "criteria", "evidence")}
    plain["answers"] = _answers(given["answers"]) or None
    plain["metrics"] = metrics
    values.update({key: value for key, value in plain.items() if value is not None})
    options.nested(values, "server", max_model_len=given["max_model_len"])
    for name in ("answers", "data", "out"):
        if not values.get(name):
            raise click.UsageError(f"Missing option '--{name}' (or the key {name} in a config).")
    _put_judges(values, given)
    return validate(EvaluateConfig, values, config or "options")


def _of_file(config: str, metrics: list[str] | None) -> dict[str, Any]:
    """Read a config: an evaluation's own, or a whole experiment's, of which it is the last part.

    Whether an experiment's evaluation needs a judge, and whom it compares, depends on the metrics: an option goes before them.
    """
    from kt.config import find_shipped, read_yaml
    from kt.errors import ConfigError
    from kt.train_config import evaluate_settings, is_experiment, read_experiment

    values = read_yaml(find_shipped("configs", config))
    if not is_experiment(values):
        return values
    experiment = read_experiment(config)
    if experiment.world is not None:
        raise ConfigError(f"{config}: its questions and answers are made anew for each seed: `kt run {config}` does it all")
    own = {**(experiment.evaluate or {}), **({"metrics": metrics} if metrics else {})}
    return evaluate_settings(experiment.model_copy(update={"evaluate": own}))


def _answers(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        name, equals, place = one.partition("=")
        if not equals or not name or not place:
            raise click.UsageError(f"--answers {one}: say NAME=DIR, for example --answers sft=runs/sft")
        if name in found:
            raise click.UsageError(f"--answers {name} is given twice; each method has its own name")
        found[name] = place
    return found


def _put_judges(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Put the options about judges before the config's; a second judge that only an option names is asked as the first is."""
    if not (values.get("judge") or given["judge"]):
        if given["second_judge"]:
            raise click.UsageError("--second-judge needs a first one: --judge")
        return
    asked = {key: given[key] for key in ("backend", "base_url", "api_key_env", "revision")}
    _put_judge(values, "judge", model=given["judge"], **asked)
    backend = given["second_backend"]
    if values.get("second_judge"):  # a replay calls no model at all
        backend = backend or ("replay" if given["backend"] == "replay" else None)
    elif given["second_judge"]:
        first = values["judge"] if isinstance(values["judge"], Mapping) else {}
        values["second_judge"] = {key: first[key] for key in ("backend", "base_url", "api_key_env") if key in first}
    else:
        return
    _put_judge(values, "second_judge", model=given["second_judge"], backend=backend, base_url=given["second_base_url"])


def _put_judge(
    values: dict[str, Any], name: str, *, model: str | None, backend: str | None, base_url: Any, **more: Any
) -> None:
    """Put options before a judge's section; of another model its revision says nothing, of another backend its address."""
    section = values.get(name)
    if isinstance(section, Mapping):
        gone = {"revision"} if model not in (None, section.get("model")) else set()
        gone |= {"base_url"} if backend not in (None, section.get("backend")) else set()
        values[name] = {key: value for key, value in section.items() if key not in gone}
    options.nested(values, name, model=model, backend=backend, base_url=list(base_url) or None, **more)


def _dry_run(settings: Any, as_json: bool) -> None:
    from kt.cli.estimate import print_estimate
    from kt.evaluation_estimate import estimate_evaluation

    plan = estimate_evaluation(settings)
    if not as_json:
        click.echo(f"{plan.items['used']} of {plan.items['read']} items, the answers of {len(settings.answers)} method(s)")
    answers, sentences = plan.unsplit["answers"], plan.unsplit["sentences"]
    more = f"and check-fact once for each fact of {answers:,} answers ({sentences:,} sentences): how many, only the split tells"
    print_estimate(plan, as_json, [more] if answers else [])


def _evaluate(config: Any, quiet: bool) -> Any:
    from kt.evaluate import evaluate as run

    if quiet:
        return run(config)
    from kt.client import Counters
    from kt.progress import Display

    counters = Counters()
    with Display(counters) as display:
        return run(config, watcher=display, counters=counters, on_wait=display.waiting)


# ---- what is printed -------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> Iterator[str]:
    """Yield the results as lines: a method each, then a comparison each."""
    for name, method in results["methods"].items():
        parts = [
            f"{_number(method['words']['mean'])} words",
            f"{method['refusals']['count']} refusals",
            f"{method['empty']} empty",
        ]
        parts += [f"{metric} {_with_interval(found)}" for metric, found in method.get("metrics", {}).items()]
        parts += [f"{criterion} {_with_interval(found)}" for criterion, found in method.get("scores", {}).items()]
        if counts := method.get("facts"):
            share = _with_interval({"mean": counts["correct_share"]["share"], "interval": counts["correct_share"]["interval"]})
            parts.append(f"facts: {counts['correct']} correct, {counts['incorrect']} incorrect, share {share}")
        yield f"{name}: {'; '.join(parts)}"
    for judged in results.get("judges", []):
        for row in judged["comparisons"]:
            counts = ", ".join(f"{row[name]['count']} {name}" for name in ("win", "tie", "lose"))
            bias = f"position bias {_number(row['position_bias'])}"
            rejected = f"; {row['rejected']} rejected" if row["rejected"] else ""
            yield f"{row['one']} against {row['other']}, {row['criterion']} ({judged['judge']}): {counts}; {bias}{rejected}"
    if found := results.get("agreement"):
        yield f"agreement of {' and '.join(found['judges'])}: kappa {_number(found['kappa'])}, alpha {_number(found['alpha'])}"


def _with_interval(found: dict[str, Any]) -> str:
    between = f" [{_number(found['interval'][0])}, {_number(found['interval'][1])}]" if found["interval"] else ""
    return _number(found["mean"]) + between


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _last_line(run: Any) -> str:
    items, counters = run.results["items"], run.counters
    rejected = sum(step.rejected for step in run.steps)
    cost = f" for ${counters.cost:.4f}" if counters.cost else ""
    calls = f"{counters.sent} calls sent{cost}, {counters.hits} answers from the cache"
    read = f"read {items['read']} items and the answers of {len(run.results['methods'])} method(s)"
    return f"{read}, evaluated {items['used']} items, rejected {rejected}; {calls}; {run.out / 'results.json'}"
