"""Use a trained run: ``vae-pyro score``, ``encode``, ``reconstruct`` and ``sample``."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from vae_pyro.cli.console import add_uri, attempt, make_console, write_output
from vae_pyro.progress import show_progress
from vae_pyro.reporting.figures import png
from vae_pyro.reporting.own_images import score_notes, score_rows, score_table
from vae_pyro.reporting.tables import print_notes as print_notes_of_table
from vae_pyro.reporting.tables import print_table, to_csv
from vae_pyro.runs.trained import TrainedRun, load_run, run_folder


def score(arguments: Sequence[str]) -> int:
    """ELBO, log p(x) and bits per dimension of images of your own, one row for each."""
    parser = _parser("score", score)
    _add_images(parser)
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")

    def run(trained: TrainedRun, options: argparse.Namespace) -> None:
        files, images = trained.read(options.images, resize=options.resize)
        console = make_console()
        how = {"progress": partial(show_progress, console=console)}
        scores = trained.score(
            files, images, seed=options.seed, **(how if options.format == "table" else {})
        )
        if options.format == "csv":
            rows = score_rows(scores)
            sys.stdout.write(to_csv(rows, list(rows[0])))
        elif options.format == "json":
            sys.stdout.write(json.dumps(score_rows(scores), indent=2, allow_nan=False) + "\n")
        else:
            print_table(score_table(scores), console)
            print_notes_of_table(score_notes(scores), console)

    return _done(parser, arguments, run)


def encode(arguments: Sequence[str]) -> int:
    """The posterior means E[z | x] of images of your own, as CSV: one row for each image."""
    parser = _parser("encode", encode)
    _add_images(parser)

    def run(trained: TrainedRun, options: argparse.Namespace) -> None:
        files, images = trained.read(options.images, resize=options.resize)
        means = trained.encode(images, seed=options.seed).tolist()
        names = [f"z{index}" for index in range(trained.vae.latent_dim)]
        rows = [
            {"file": str(path)}
            | dict(zip(names, (f"{number:.7g}" for number in mean), strict=True))
            for path, mean in zip(files, means, strict=True)
        ]
        sys.stdout.write(to_csv(rows, ["file", *names]))

    return _done(parser, arguments, run)


def reconstruct(arguments: Sequence[str]) -> int:
    """Images of your own, and below them their reconstructions, as a picture."""
    parser = _parser("reconstruct", reconstruct)
    _add_images(parser)
    parser.add_argument("--out", type=Path, default=Path("reconstructions.png"), help="PNG file")

    def run(trained: TrainedRun, options: argparse.Namespace) -> None:
        _, images = trained.read(options.images, resize=options.resize)
        write_output(options.out, png(trained.reconstruct(images, seed=options.seed)))

    return _done(parser, arguments, run)


def sample(arguments: Sequence[str]) -> int:
    """New images, z ~ N(0, I) and x ~ p(x | z), as a picture."""
    parser = _parser("sample", sample)
    parser.add_argument("out", type=Path, nargs="?", default=Path("samples.png"), help="PNG file")
    parser.add_argument("-n", type=_count, default=64, metavar="N", help="images (default: 64)")
    parser.add_argument("--mean", action="store_true", help="show the means of p(x | z) instead")

    def run(trained: TrainedRun, options: argparse.Namespace) -> None:
        write_output(
            options.out, png(trained.sample(options.n, seed=options.seed, means=options.mean))
        )

    return _done(parser, arguments, run)


def _parser(name: str, command: Callable[..., int]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"vae-pyro {name}", description=command.__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a job, or id of a run in MLflow")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    add_uri(parser)
    return parser


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="PATH", help="PNG or JPEG files, or folders"
    )
    parser.add_argument(
        "--resize", action="store_true", help="cut and resize images of another size"
    )


def _done(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    run: Callable[[TrainedRun, argparse.Namespace], None],
) -> int:
    """Run a command; 0, or 1 and a message."""
    options = parser.parse_intermixed_args(arguments)  # options may stand anywhere

    def work() -> None:
        with run_folder(options.run, options.uri) as folder:
            run(load_run(folder), options)

    return attempt(work)


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 10_000:
        raise argparse.ArgumentTypeError("must be from 1 to 10,000")
    return number
