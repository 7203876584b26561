"""How far judges agree, models or people: Cohen's kappa and Krippendorff's alpha, through nltk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kt.errors import InputError


def agreement(labels: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return how far judges agree; `labels` holds for each judge the label of every unit, as {judge: {unit: label}}.

    "same" is the share of units, labelled by all, with one label; "kappa" is Cohen's, averaged over pairs of judges; "alpha"
    is Krippendorff's for nominal labels. Kappa and alpha are None where they mean nothing: no unit, or one label only.
    """
    if len(labels) < 2:
        raise InputError(f"agreement needs two judges; {len(labels)} given")
    shared = sorted(set.intersection(*(set(own) for own in labels.values())))
    used = {own[unit] for own in labels.values() for unit in shared}
    same = sum(len({own[unit] for own in labels.values()}) == 1 for unit in shared)
    found: dict[str, Any] = {"judges": sorted(labels), "units": len(shared), "same": None, "kappa": None, "alpha": None}
    if shared:
        found["same"] = round(same / len(shared), 6)
    if len(used) > 1:
        task = _task([(judge, unit, own[unit]) for judge, own in labels.items() for unit in shared])
        found["kappa"], found["alpha"] = round(task.kappa(), 6), round(task.alpha(), 6)
    return found


def _task(triples: list[tuple[str, str, str]]) -> Any:
    try:
        from nltk.metrics.agreement import AnnotationTask
    except ImportError as error:
        raise InputError("agreement between judges needs nltk: pip install 'kt[eval]'") from error
    return AnnotationTask(data=triples)
