"""The report as HTML: its numbers are those of the runs, and it holds all that it shows."""

import base64
import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_results import METRICS, on_disk, seeded
from vae_pyro.reporting.chart import ChartPoint, Panel
from vae_pyro.reporting.configurations import Group, grouped
from vae_pyro.reporting.html_report import html_report
from vae_pyro.reporting.plots import bounds_plot, differences_plot, script
from vae_pyro.reporting.results import JobResult
from vae_pyro.reporting.sweeps import panel_of, sweep_table

PNG = b"\x89PNG\r\n\x1a\n and the rest"


class Page(HTMLParser):
    """What a browser would find in a page: its text, its elements, and what it refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._open: list[str] = []
        self.feed(page.replace(script(), ""))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split()).replace("\N{NON-BREAKING HYPHEN}", "-")


@pytest.fixture
def groups(tmp_path: Path) -> list[Group]:
    """Two that cannot be told apart, and one that is worse; pictures of the first."""
    runs = [
        *seeded(tmp_path, 2, [-24.9, -25.0, -25.1]),
        *seeded(tmp_path, 10, [-23.0, -23.1, -22.9]),
        *seeded(tmp_path, 20, [-23.2, -22.8, -23.15]),
    ]
    (tmp_path / "2-0" / "samples.png").write_bytes(PNG)
    (tmp_path / "2-0" / "training.png").write_bytes(b"no picture")
    (tmp_path / "2-0" / "config.yaml").write_text("latent_dim: 2\nname: <b>\n")
    return grouped(runs)


def test_it_says_what_the_comparison_found(groups: list[Group]) -> None:
    page = Page(html_report(groups, "sweep d=2,10,20", "python run.py latent_dim=2,10,20 -m"))
    assert "Which of these 3 configurations gives the test images the highest" in page.words
    highest = "latent_dim=10 has the highest log p(x), -23.00 nats per test image"
    assert f"{highest} (digits: binary pixels)." in page.words
    assert "Not decided at 95%: latent_dim=20 may be as good." in page.words
    for row in sweep_table(groups[0]).rows:
        assert " ".join(filter(None, row)) in page.words
    assert "python run.py latent_dim=2,10,20 -m" in page.words
    assert page.words.startswith("sweep d=2,10,20 ")


def test_a_decided_comparison_is_said_to_be_one(tmp_path: Path) -> None:
    values = {2: [-24.9, -25.0, -25.1], 10: [-20.0, -20.1, -19.9]}
    runs = [run for dim, of_seeds in values.items() for run in seeded(tmp_path, dim, of_seeds)]
    page = Page(html_report(grouped(runs), "title"))
    assert "latent_dim=10 has the highest log p(x), -20.00 nats" in page.words
    assert "Every other configuration is lower, at 95%" in page.words
    assert "trained once" not in page.words


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    page = Page(html_report(grouped(seeded(tmp_path, 2, [-24.0])), "d=2"))
    assert "How probable are the test images under this model" in page.words
    answer = "log p(x) is -24.00 nats per test image, the ELBO -24.50 (digits: binary pixels)."
    assert answer in page.words
    assert "-24.000 ± 0.004" in page.words
    assert "Each configuration was trained once." in page.words
    assert "highest" not in page.words


def test_what_is_doubtful_is_said(tmp_path: Path) -> None:
    doubtful = seeded(
        tmp_path, 2, [-24.0, -24.1], **{"test/untrusted": 0.3, "test/pareto_k_high": 0.4}
    )
    groups = grouped([*doubtful, *seeded(tmp_path, 10, [-23.0, -23.1])])
    page = Page(html_report(groups, "title"))
    assert "latent_dim=2: for 30% of the test images the error bar of log p(x)" in page.words
    assert "latent_dim=2: for 40% of the test images k-hat is high" in page.words
    assert "latent_dim=10: for" not in page.words
    page = Page(html_report(grouped(doubtful), "title"))
    assert "log p(x) is at least -24.05 nats" in page.words


def test_no_doubt_is_said_too(tmp_path: Path) -> None:
    groups = grouped(seeded(tmp_path, 2, [-24.0, -24.1], **{"test/pareto_k_high": 0.05}))
    assert "No diagnostic gives reason to doubt them." in Page(html_report(groups, "")).words


def test_it_holds_all_that_it_shows(groups: list[Group]) -> None:
    """Pictures as addresses that are the pictures; a file that is none is left out."""
    text = html_report(groups, "title")
    page = Page(text)
    assert script() in text
    assert {address.partition(":")[0] for address in page.addresses} == {"data"}
    (picture,) = [a for a in page.addresses if a.startswith("data:image/png;base64,")]
    assert base64.b64decode(picture.partition(",")[2]) == PNG
    assert not re.search(r"@import|url\(", text.replace(script(), ""))


WICKED = "</script><script>alert(1)</script><img src=x onerror='alert(1)'>"


def test_names_are_words_and_never_markup(tmp_path: Path) -> None:
    """A setting, a folder's name or a configuration may come from other people."""
    harmless, wicked = (
        [
            on_disk(
                tmp_path / f"{key}-{value}",
                JobResult("n", {"prior": name, "seed": "0"}, 2, None, x, "abc", 0.0, METRICS),
            )
            for value, name in enumerate(names)
        ]
        for key, (names, x) in {
            "a": (("p", "q"), "digits: binary pixels"),
            "b": ((WICKED, f"{WICKED}2"), f"{WICKED}: x"),
        }.items()
    )
    for run in (*harmless, *wicked):
        ((run.folder or Path()) / "config.yaml").write_text(f"name: {WICKED}\n")
    plain = Page(html_report(grouped(harmless), "title", "command"))
    page = Page(html_report(grouped(wicked), WICKED, WICKED))
    assert page.tags == plain.tags
    assert html.unescape(WICKED) in page.words


def test_the_charts_have_the_numbers_of_the_runs(groups: list[Group]) -> None:
    """As plotly's own classes read them, which refuse what they do not know."""
    panel = panel_of(groups[0], groups)
    bounds, differences = go.Figure(bounds_plot(panel)), go.Figure(differences_plot(panel))
    lines = {line.name: line for line in bounds.data if line.name}
    assert list(lines) == ["ELBO", "IWAE-5", "IWAE-50", "log p(x)"]
    line = lines["log p(x)"]
    assert list(line.x) == ["2", "10", "20"]
    assert list(line.y) == pytest.approx([-25.0, -23.0, -23.05])
    # Student's t over three seeds: 4.303 standard errors.
    assert line.error_y.array[0] == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert line.error_y.arrayminus[0] == pytest.approx(line.error_y.array[0])
    seeds = bounds.data[-1]
    assert list(seeds.y[:3]) == [-24.9, -25.0, -25.1]
    assert list(seeds.x[:3]) == ["2"] * 3
    comparison = groups[0].comparison
    found = comparison.difference("latent_dim=2", "latent_dim=10")
    (line,) = differences.data
    low, high = found.interval()
    assert line.y[:2] == pytest.approx((found.value, 0.0))
    assert line.error_y.array[0] == pytest.approx(high - found.value)
    assert line.error_y.arrayminus[0] == pytest.approx(found.value - low)


number = st.floats(-1e4, 1e4) | st.just(math.nan)
point = st.builds(ChartPoint, number, number, number, st.lists(st.floats(-1e4, 1e4), max_size=3))


@given(
    st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=5, unique=True),
    st.booleans(),
    st.data(),
)
def test_any_panel_is_a_figure(labels: Sequence[str], ordered: bool, data: st.DataObject) -> None:
    points = st.lists(point, min_size=len(labels), max_size=len(labels))
    series = data.draw(st.dictionaries(st.text(max_size=5), points, min_size=1, max_size=3))
    panel = Panel("x", labels, "axis", ordered, series, data.draw(points))
    for plot in (bounds_plot(panel), differences_plot(panel)):
        go.Figure(plot)
        json.dumps(plot, allow_nan=False)
        for trace in plot["data"]:
            assert set(trace["x" if ordered else "y"]) <= set(labels)


def test_many_configurations_have_few_pictures(tmp_path: Path) -> None:
    runs = [run for dim in range(1, 16) for run in seeded(tmp_path, dim, [-24.0 - dim])]
    for run in runs:
        ((run.folder or Path()) / "samples.png").write_bytes(PNG)
    page = Page(html_report(grouped([replace(run) for run in runs]), "title"))
    assert page.tags.count("img") == 12
    assert "Pictures of 3 more configurations" in page.words
