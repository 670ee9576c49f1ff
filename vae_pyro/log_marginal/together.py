"""Several estimators on the same images: in chunks, with progress, and continued after a stop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from vae_pyro.compilation import accelerated
from vae_pyro.compilation.processes import num_processes, spread
from vae_pyro.log_marginal.annealed import AIS
from vae_pyro.log_marginal.cache import Chunk, ChunkCache
from vae_pyro.log_marginal.chunking import multiply_adds, rows_per_chunk
from vae_pyro.log_marginal.drawing import pair_of
from vae_pyro.log_marginal.estimate import Estimate, concatenate
from vae_pyro.log_marginal.estimator import Estimator, OnProgress, part_of
from vae_pyro.log_marginal.importance import WeightEstimator, read_together
from vae_pyro.log_marginal.pair import blank_images
from vae_pyro.log_marginal.program import Images, ModelAndGuide, require_vae
from vae_pyro.progress import ShowProgress, no_progress
from vae_pyro.randomness import RandomStream

IMAGES_PER_CHUNK = {"cpu": 25, "cuda": 100}
"""By the kind of device: few are shared evenly by a processor's cores, many occupy a GPU."""
_MANY = 20  # chunks for each process: one more or less makes no difference


@dataclass(frozen=True, repr=False)
class TimedEstimate:
    """The result of one estimator, and the time that it took.

    Attributes:
        estimate: for every image.
        seconds: of computing it, added up over the processes that share the images; those of a pass
            that several estimators share count for each.
    """

    estimate: Estimate
    seconds: float

    def __str__(self) -> str:
        return f"{self.estimate}, {self.seconds:.1f} s"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.estimate.value)} images: {self}>"


def estimate_together(
    estimators: Mapping[str, Estimator],
    vae: ModelAndGuide,
    x: Images,
    *,
    seed: int,
    place: int = 0,
    folder: Path | str | None = None,
    progress: ShowProgress = no_progress,
) -> dict[str, TimedEstimate]:
    """Run several estimators on the same images.

    Those that use the same importance weights share one pass. Every chunk of images has random
    numbers of its own, fixed by ``seed``, the estimators' names and the chunk's place; so an
    evaluation that was stopped and continued gives the same numbers as an undisturbed one.

    Args:
        estimators: by name.
        vae: the pair, in evaluation mode.
        x: images, ``(N, C, H, W)``.
        seed: of all random numbers.
        place: of the first image, where the x are the later part of more images.
        folder: where the results of each chunk are written as soon as they are computed, and read
            from on the next call with the same estimators, weights, images and seed. None writes
            nothing, and is needed for a ``PyroProgram``.
        progress: shows how far each pass is.

    Raises:
        EstimatorError: where an estimator does not apply to this VAE; before anything is computed.
        DataError: where x is not a batch of images for this VAE.
    """
    for estimator in estimators.values():
        estimator.check(vae)
    pair_of(vae).check_form(x)
    estimates: dict[str, TimedEstimate] = {}
    for names in _passes(estimators):
        family = {name: estimators[name] for name in names}

        def compute(
            chunk: slice, report: OnProgress, family: Mapping[str, Estimator] = family
        ) -> dict[str, Estimate]:
            if len(family) > 1:
                readers = {k: v for k, v in family.items() if isinstance(v, WeightEstimator)}
                return read_together(readers, vae, x[chunk], report)
            ((name, estimator),) = family.items()
            return {name: estimator(vae, x[chunk], report)}

        span = " .. ".join(dict.fromkeys((names[0], names[-1])))
        estimates |= _in_chunks(
            compute,
            f"evaluating {span}",
            vae,
            x,
            tuple(sorted(family.items())),
            seed,
            folder,
            progress,
            place,
            stream=f"evaluating {span}",
        )
    return {name: estimates[name] for name in estimators}


def for_all_images(
    estimates: Mapping[str, TimedEstimate],
    estimators: Mapping[str, Estimator],
    vae: ModelAndGuide,
    x: Images,
    first: Int[Tensor, " n"],
    *,
    seed: int,
    folder: Path | str | None = None,
    progress: ShowProgress = no_progress,
) -> dict[str, TimedEstimate]:
    """Results for all images, of the estimators that are cheap enough; see ``is_cheap``.

    Only the images without a result are computed.

    Args:
        estimates: by name, for the images ``first``, from ``estimate_together``.
        estimators: by name.
        vae: the pair, in evaluation mode.
        x: all images, ``(N, C, H, W)``.
        first: their places in x, ascending, ``(n,)``. Where these are all places, the results are
            returned unchanged.
        seed: as for ``estimate_together``.
        folder: likewise.
        progress: likewise.
    """
    if len(first) == len(x):
        return dict(estimates)
    cheap = {
        name: estimator
        for name, estimator in estimators.items()
        if is_cheap(estimator, vae, estimates[name].estimate, len(x))
    }
    is_left = torch.ones(len(x), dtype=torch.bool)
    is_left[first] = False
    left = is_left.nonzero().flatten()
    later = estimate_together(
        cheap,
        vae,
        x[left.to(x.device)],
        seed=seed,
        place=len(first),
        folder=folder,
        progress=progress,
    )
    in_order = torch.cat([first, left]).argsort()
    return {
        name: TimedEstimate(
            concatenate([estimates[name].estimate, rest.estimate]).select(in_order),
            estimates[name].seconds + rest.seconds,
        )
        for name, rest in later.items()
    }


def is_cheap(estimator: Estimator, vae: ModelAndGuide, estimate: Estimate, num_images: int) -> bool:
    """Whether a result for so many images costs less than the estimator's ``budget_for_all``.

    cost = decoder evaluations per image * images * multiply-adds per evaluation. It is counted, not
    measured: with a clock, an evaluation that is continued could decide otherwise than before.

    Args:
        estimator: with its budget.
        vae: the pair.
        estimate: the estimator's result for some images, with its number of decoder evaluations.
        num_images: of the whole test set, each draw of x counted.
    """
    if not estimator.budget_for_all:
        return False
    cost = multiply_adds(require_vae(vae, "the cost of an evaluation"))
    return estimate.evaluations * num_images * cost < estimator.budget_for_all


def bidirectional(
    estimator: AIS,
    vae: ModelAndGuide,
    num_images: int,
    *,
    seed: int,
    folder: Path | str | None = None,
    progress: ShowProgress = no_progress,
) -> tuple[TimedEstimate, TimedEstimate]:
    """Bidirectional Monte Carlo: log p(x) of simulated images from below and from above.

    z ~ p(z) and x ~ p(x | z) make z a sample of p(z | x), so that AIS run backwards from it is an
    upper bound in expectation. The truth lies between the two. Their distance measures how accurate
    AIS with this budget is on images of this kind.

    Args:
        estimator: AIS, with the budget to be measured.
        vae: the pair, in evaluation mode.
        num_images: how many to simulate.
        seed: of all random numbers.
        folder: as for ``estimate_together``.
        progress: likewise.

    Returns:
        the lower bound and the upper bound, for the same images. Use ``image_std_error`` for the
        error of their gap: every image has one posterior sample, which the chains share.

    Source: Grosse et al. (2015), section 3; Wu et al. (2017), section 4.2.
    """
    vae = require_vae(vae, "simulating images")
    with torch.no_grad(), RandomStream("simulated images", seed, vae.model.origin.device).active():
        z = vae.model.prior().sample((num_images,))
        rows = rows_per_chunk(vae, blank_images(vae))
        x = torch.cat([vae.model.decode(part).sample() for part in z.split(rows)])
        x = vae.model.likelihood.into_support(x)

    def compute(chunk: slice, report: OnProgress) -> dict[str, Estimate]:
        return {
            "lower": estimator(vae, x[chunk], part_of(report, 0, 0.5)),
            "upper": estimator.upper_bound(vae, x[chunk], z[chunk], part_of(report, 0.5, 1)),
        }

    bounds = _in_chunks(
        compute,
        "evaluating simulated images",
        vae,
        x,
        ("bidirectional", estimator),
        seed,
        folder,
        progress,
        stream="evaluating simulated images",
    )
    return bounds["lower"], bounds["upper"]


def _passes(estimators: Mapping[str, Estimator]) -> list[list[str]]:
    """Names, grouped by the set of weights that they share."""
    passes: dict[object, list[str]] = {}
    for name, estimator in estimators.items():
        key: object = name
        if isinstance(estimator, WeightEstimator):
            key = (estimator.num_samples, estimator.proposal)
        passes.setdefault(key, []).append(name)
    return list(passes.values())


def _in_chunks(
    compute: Callable[[slice, OnProgress], dict[str, Estimate]],
    label: str,
    vae: ModelAndGuide,
    x: Images,
    given: tuple[object, ...],
    seed: int,
    folder: Path | str | None,
    progress: ShowProgress,
    place: int = 0,
    *,
    stream: str,
) -> dict[str, TimedEstimate]:
    """Compute chunk by chunk, each with its own random numbers, or read it from the folder.

    Args:
        compute: the estimates for a slice of the images.
        label: what is being done, for the progress.
        vae: the pair.
        x: images, ``(N, C, H, W)``.
        given: what, besides VAE, images and seed, the results depend on.
        stream: names the random numbers, together with each chunk's place. It must never change:
            with another name, an evaluation that is continued would get other numbers.
        seed: as for ``estimate_together``.
        folder: likewise.
        progress: likewise.
        place: likewise.
    """
    cache = ChunkCache(folder, vae)
    size = IMAGES_PER_CHUNK[x.device.type]
    chunks = [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]

    def compute_chunk(number: int, report: OnProgress) -> Chunk:
        chunk = chunks[number]

        def compute_anew() -> dict[str, Estimate]:
            with RandomStream(f"{stream} {place + chunk.start}", seed, x.device).active():
                return compute(chunk, report)

        return cache.read_or_compute((*given, seed, place + chunk.start), x[chunk], compute_anew)

    with progress(label, len(x)) as report, accelerated(x.device, repeats=len(chunks)):
        done = [0.0] * len(chunks)

        def report_all(number: int, share: float, state: str) -> None:
            done[number] = share * (chunks[number].stop - chunks[number].start)
            report(int(sum(done)), state)

        report(0, "")
        processes = num_processes(x.device)
        # What the first compiles, the processes share.
        ahead = 1 if len(chunks) >= _MANY * processes else 0
        computed = spread(compute_chunk, len(chunks), processes, report_all, ahead=ahead)
    return {
        name: TimedEstimate(
            concatenate([estimates[name] for estimates, _ in computed]),
            sum(seconds for _, seconds in computed),
        )
        for name in computed[0][0]
    }
