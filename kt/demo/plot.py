"""A study's results as one picture: how many facts are right, and what share of those stated, for every method and seed."""

from __future__ import annotations

from pathlib import Path

from kt.records import Record, atomic_file


def write_plot(results: Record, path: str | Path) -> None:
    """Write an SVG: a small mark a seed, a large one for the mean over the seeds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "kt", "font.size": 9}):
        figure, place = pyplot.subplots(figsize=(6.5, 4.2), layout="constrained")
        for number, (name, method) in enumerate(results["methods"].items()):
            counts, shares = method["correct"], method["correct_share"]
            if shares["mean"] is None:
                continue
            colour = f"C{number % 10}"
            seeds = [(x, y * 100) for x, y in zip(counts["by_seed"], shares["by_seed"], strict=True) if y is not None]
            place.plot(*zip(*seeds, strict=True), ".", color=colour, alpha=0.5)
            place.plot(counts["mean"], shares["mean"] * 100, "o", color=colour, markersize=9, label=name)
        place.set_xlabel("right facts an answer")
        place.set_ylabel("right facts of all facts stated, %")
        place.set_title(f"World {results['world']}, {results['towns']} towns, {len(results['seeds'])} seeds", fontsize=9)
        place.legend()
        with atomic_file(path) as stream:
            figure.savefig(stream, format="svg", metadata={"Date": None})
        pyplot.close(figure)
