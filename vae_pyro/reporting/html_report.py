"""The report of a sweep or of a run: one HTML file that holds all it shows."""

import base64
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vae_pyro.evaluation.difference import Scope
from vae_pyro.files import read_regular
from vae_pyro.log_marginal.estimate import MOST_UNTRUSTED
from vae_pyro.reporting.chart import ChartPoint, Panel
from vae_pyro.reporting.configurations import SEED, Configuration, Group
from vae_pyro.reporting.plots import bounds_plot, differences_plot, script
from vae_pyro.reporting.results import JobResult, bound_label, bound_names, setting
from vae_pyro.reporting.sweeps import panel_of, sweep_notes, sweep_table
from vae_pyro.reporting.tables import CAPTION, SummaryTable, bound_notes, run_table

PICTURES = {
    "samples": "New images from the model (z ~ N(0, I), x ~ p(x|z)), and real ones beside them",
    "reconstructions": "Test images, and below each the mean of p(x|z) at its posterior",
    "latent_space": "Posterior means of the test images in the latent space",
    "training": "Training curves",
    "elbo_vs_iwae": "ELBO, IWAE-K and log p(x) against the number of samples",
}
"""What a job's folder has as PNG files of these names."""
CONFIG = "config.yaml"
_MOST_SHOWN = 12  # configurations with pictures
_LARGEST = 20_000_000  # bytes of a picture
_PNG = b"\x89PNG\r\n\x1a\n"
_HIGH = 0.1  # share of images with a high k-hat that is mentioned
_PACKAGES = ("vae-pyro", "torch", "pyro-ppl", "numpy", "hydra-core", "mlflow")


@dataclass(frozen=True)
class _Shown:
    """Pictures of one kind, by configuration."""

    title: str
    pictures: list[tuple[str, str]]


def html_report(groups: Sequence[Group], title: str, command: str | None = None) -> str:
    """The report as HTML: question, tables, charts, diagnostics, pictures, how to reproduce it.

    Pictures and configurations are read from the folders of the runs; a missing one is left out.

    Args:
        groups: of the sweep; of a single run one group with one configuration.
        title: of the page.
        command: that made the runs, where it is known.

    Returns:
        the page. It loads nothing from elsewhere.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vae_pyro.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    number = sum(len(group.configurations) for group in groups)
    runs = [run for group in groups for run in group.runs]
    shown = [one for group in groups for one in group.configurations][:_MOST_SHOWN]
    return environment.get_template("report.html").render(
        title=title,
        question=_question(number),
        answers=[answer for group in groups for answer in _answers(group)],
        tables=_tables(groups),
        notes=_notes(groups),
        charts=list(_charts(groups)),
        diagnostics=_diagnostics(groups),
        warnings=_warnings(groups),
        pictures=_pictures(shown),
        left_out=number - len(shown),
        configs=[(one.name, text) for one in shown if (text := _config(one.runs[0]))],
        command=command,
        num_runs=len(runs),
        versions=[("Python", sys.version.split()[0]), *((n, version(n)) for n in _PACKAGES)],
        script=script(),
    )


def _question(number: int) -> str:
    if number == 1:
        return (
            "How probable are the test images under this model, and how far below that is the ELBO?"
        )
    return (
        f"Which of these {number} configurations gives the test images the highest probability, "
        "and how sure is that?"
    )


def _answers(group: Group) -> Iterator[str]:
    """What the numbers of one kind of x say, in sentences."""
    if len(group.configurations) == 1:
        (one,) = group.configurations
        mean = _nats(one.scores.mean(), is_lower=one.is_bound or not one.scores.is_trusted)
        elbo = one.nats("test/elbo")
        yield f"log p(x) is {mean} nats per test image, the ELBO {_plain(elbo)} ({group.x})."
        return
    comparison = group.comparison
    best = next(one for one in group.configurations if one.name == comparison.highest)
    mean = _nats(best.scores.mean(), is_lower=best.is_bound or not best.scores.is_trusted)
    yield f"{best.name} has the highest log p(x), {mean} nats per test image ({group.x})."
    others = [name for name in comparison.best_set if name != best.name]
    if others:
        yield (
            f"Not decided at 95%: {'; '.join(others)} may be as good. More training seeds, or more "
            "test images, narrow this down."
        )
    else:
        about = " of these trained weights" if Scope.WEIGHTS in comparison.scopes else ""
        yield f"Every other configuration is lower, at 95% for all comparisons{about} together."


def _nats(value: float, *, is_lower: bool) -> str:
    return f"{'at least ' * is_lower}{_plain(value)}"


def _plain(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _tables(groups: Sequence[Group]) -> list[SummaryTable]:
    if sum(len(group.runs) for group in groups) == 1:
        return [run_table(groups[0].runs[0])]
    return [sweep_table(group) for group in groups]


def _notes(groups: Sequence[Group]) -> list[str]:
    runs = [run for group in groups for run in group.runs]
    if len(runs) > 1:
        return sweep_notes(groups)
    return [CAPTION, *bound_notes(any_bound=runs[0].is_bound, all_trusted=runs[0].is_trusted)]


def _charts(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """Charts with a title and a line on how to read them."""
    if sum(len(group.runs) for group in groups) == 1:
        yield {
            "title": "From the ELBO up to log p(x)",
            "words": "Bars: two Monte Carlo standard errors; the same images evaluated again.",
            **bounds_plot(_panel_of_run(groups[0].runs[0])),
        }
        return
    for group in groups:
        panel = panel_of(group, groups)
        has_seeds = any(len(one.runs) > 1 for one in group.configurations)
        yield {
            "title": f"From the ELBO up to log p(x): {panel.title}",
            "words": "Means over training seeds, with 95% intervals over seeds on the same images; "
            "faint dots are single seeds."
            if has_seeds
            else "One training seed, so there are no bars: another seed would move every point.",
            **bounds_plot(panel),
        }
        if panel.differences:
            about = (
                "other seeds and images" if panel.is_about_seeds else "these weights, other images"
            )
            yield {
                "title": "log p(x) minus the highest, paired over images",
                "words": f"95% intervals, for {about} of the same kind.",
                **differences_plot(panel),
            }


def _panel_of_run(run: JobResult) -> Panel:
    """The bounds of one run side by side; no bar where it cannot be trusted."""
    names = bound_names([run])
    errors = [2 * run.metrics.get(f"{name}_std_error", math.nan) for name in names]
    if not run.is_trusted:
        errors[-1] = math.nan
    points = [
        ChartPoint(run.nats(name), run.nats(name) - error, run.nats(name) + error)
        for name, error in zip(names, errors, strict=True)
    ]
    return Panel("", [bound_label(name) for name in names], "bound", True, {run.x: points})


def _diagnostics(groups: Sequence[Group]) -> SummaryTable:
    """One row for each run."""
    columns = {
        "high k-hat": ("test/pareto_k_high", ".1%"),
        "untrusted": ("test/untrusted", ".1%"),
        "ESS": ("test/effective_sample_size", ".0f"),
        "active units": ("test/active_units", ".3g"),
        "kept epoch": ("train/kept_epoch", ".0f"),
    }
    rows = [
        [one.name, setting(run, SEED) or "0"]
        + [
            format(run.metrics[metric], form) if metric in run.metrics else ""
            for metric, form in columns.values()
        ]
        for group in groups
        for one in group.configurations
        for run in one.runs
    ]
    return SummaryTable("", ["configuration", "seed", *columns], rows)


def _warnings(groups: Sequence[Group]) -> list[str]:
    """What gives reason to doubt a number, and what to try; a sentence or two each."""
    found = []
    for one in (one for group in groups for one in group.configurations):
        untrusted = one.mean("test/untrusted") or 0.0
        high = one.mean("test/pareto_k_high") or 0.0
        if untrusted > MOST_UNTRUSTED:
            found.append(
                f"{one.name}: for {untrusted:.0%} of the test images the error bar of log p(x) "
                "cannot be trusted, so the true value may be higher than shown. Evaluate this run "
                "with more samples: vae-pyro evaluate RUN evaluation=full."
            )
        if high > _HIGH:
            found.append(
                f"{one.name}: for {high:.0%} of the test images k-hat is high. There the guide is "
                "too far from the posterior for importance sampling with it alone: ELBO and IWAE-K "
                "are loose. log p(x) adapts its proposal to such images."
            )
    if all(len(one.runs) == 1 for group in groups for one in group.configurations):
        found.append(
            "Each configuration was trained once. Another training seed would move its numbers by "
            "an amount that one seed cannot show: add seed=0,1,2,3,4."
        )
    return found


def _pictures(configurations: Sequence[Configuration]) -> list[_Shown]:
    """By kind, of the first seed of each configuration."""
    shown = []
    for kind, title in PICTURES.items():
        found = [
            (one.name, address)
            for one in configurations
            if (address := _picture((one.runs[0].folder or Path()) / f"{kind}.png"))
        ]
        if found:
            shown.append(_Shown(title, found))
    return shown


def _picture(path: Path) -> str | None:
    """A picture as an address that holds it; None where there is none."""
    try:
        content = read_regular(path, _LARGEST)
    except OSError:
        return None
    if not content.startswith(_PNG):
        return None
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _config(run: JobResult) -> str | None:
    try:
        return read_regular((run.folder or Path()) / CONFIG, _LARGEST).decode(errors="replace")
    except OSError:
        return None
