"""`hashvpr evaluate --suite`: one table over all image sets of a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import click

from hashvpr_ros import __version__
from hashvpr_ros.cli.common import (
    end_with_losses,
    machine,
    open_engine,
    progress_bar,
    said_of,
    table,
    ticker,
    write_json,
)
from hashvpr_ros.errors import ConfigError, DatasetError

Ranges = dict[str, tuple[int, int]]


def run(
    folder: Path,
    engine_path: Path | None,
    *,
    queries: Sequence[str],
    compare_to: Sequence[Path],
    with_baselines: bool,
    tolerance: int,
    report: Path | None,
    json_path: Path | None,
) -> None:
    """Evaluate all sets, print the table, and write what is asked for.

    Args:
        queries: SET=FIRST:LAST.

    Raises:
        DatasetError: there is no set, or none could be evaluated. ConfigError: a range is
            malformed, does not fit, or names no set. EngineError: a model cannot be loaded.
    """
    from hashvpr_ros.evaluation.baselines import BASELINES
    from hashvpr_ros.evaluation.suite import (
        SUITE_NOTE,
        find_sets,
        means,
        open_set,
        run_set,
        table_of,
    )

    sets, skipped = find_sets(folder)
    ranges = _ranges(queries, [s.name for s in sets])
    for image_set in sets:
        if image_set.name in ranges:
            with suppress(DatasetError):  # which its row will say
                open_set(image_set, ranges[image_set.name])
    for name in skipped:
        click.echo(f"skipped: {name} is no image set")
    baselines = list(BASELINES) if with_baselines else []
    results = []
    with ExitStack() as stack:
        engine = open_engine(engine_path)
        stack.callback(engine.close)
        compared = {}
        for name, path in _names(compare_to).items():
            compared[name] = open_engine(path)
            stack.callback(compared[name].close)
        click.echo(f"{engine.info.name} on {folder}: {len(sets)} image sets")
        for image_set in sets:
            with progress_bar(None, image_set.name) as bar:
                results.append(
                    run_set(
                        image_set, engine, queries=ranges.get(image_set.name), compare=compared,
                        baselines=baselines, tolerance=tolerance, progress=ticker(bar),
                    )
                )  # fmt: skip
    click.echo(table(table_of(results, baselines, list(compared))))
    click.echo(SUITE_NOTE)
    for result in results:
        if result.error:
            click.echo(f"{result.name} failed: {result.error}")
        else:
            truth = result.summary["ground_truth"]
            if truth["left_out"]:
                click.echo(f"{result.name}: {said_of(truth)}")
            for note in result.notes:
                click.echo(note, err=True)
            for line in result.skipped:
                click.echo(f"{result.name}: left out: {line}", err=True)
    settings: dict[str, Any] = {"tolerance": tolerance, "queries": ranges}
    if report is not None:
        from hashvpr_ros.evaluation.report import write_suite

        write_suite(results, baselines, list(compared), report, machine(), engine.info, settings)
        click.echo(f"report: {report.resolve()}")
    write_json(
        json_path,
        {
            "sets": {r.name: r.as_json() for r in results},
            "mean": means([r.row() for r in results]),
            "skipped": skipped,
            **settings,
            "engine": _identity(engine),
            "compared": {name: _identity(other) for name, other in compared.items()},
            "version": __version__,
            "machine": machine(),
        },
    )
    if all(r.error for r in results):
        raise DatasetError(f"{folder}: none of its image sets could be evaluated; see above")
    lost = sum(len(r.skipped) for r in results)
    end_with_losses(lost, lost + sum(r.summary["images"] for r in results if not r.error))


def _identity(engine: Any) -> dict[str, str]:
    return {"name": engine.info.name, "fingerprint": engine.info.fingerprint}


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Models by the name in the table: that of the file, where it is the only one."""
    files = [path.name for path in paths]
    return {path.name if files.count(path.name) == 1 else str(path): path for path in paths}


def _ranges(texts: Sequence[str], names: Sequence[str]) -> Ranges:
    ranges: Ranges = {}
    for text in texts:
        found = re.fullmatch(r"(.+)=(\d{1,9}):(\d{1,9})", text)
        if found is None:
            raise ConfigError(
                f"--queries {text} is malformed; give SET=FIRST:LAST, for example sped=439:589"
            )
        name = found[1]
        if name not in names:
            raise ConfigError(
                f"--queries {text}: there is no set {name}; give one of {', '.join(names)}"
            )
        if name in ranges:
            raise ConfigError(f"--queries {text}: {name} has a range already; give one")
        ranges[name] = int(found[2]), int(found[3])
    return ranges
