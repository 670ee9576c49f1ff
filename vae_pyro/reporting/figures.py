"""Pictures: grids of images, the latent space, and the bounds beside log p(x)."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vae_pyro.vae import VAE

# Ten colours that stay apart for colour-blind readers (after Paul Tol's "muted" scheme).
CLASS_COLOURS = (
    "#332288",
    "#88ccee",
    "#44aa99",
    "#117733",
    "#999933",
    "#ddcc77",
    "#cc6677",
    "#882255",
    "#aa4499",
    "#777777",
)
# From the loosest bound to log p(x), the last one; warm and cold in turn (after Okabe and Ito).
BOUND_COLOURS = ("#d55e00", "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#332288")
_SPLIT_COLOURS = {"train": BOUND_COLOURS[1], "valid": BOUND_COLOURS[-1]}
AXIS = "nats per test image (higher is better)"


def render(figure: Figure) -> np.ndarray:
    """A figure as pixels, ``uint8 (H, W, 3)``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def png(pixels: np.ndarray) -> bytes:
    """The content of a PNG file.

    Args:
        pixels: ``uint8 (H, W, 3)``, for instance from ``render``.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def tile(images: Tensor, columns: int, shown: float = math.inf) -> np.ndarray:
    """Images ``(N, C, H, W)`` in [0, 1] side by side, row by row; ``(rows H', columns W', 3)``.

    Grey lines separate them, one pixel wide or, where the picture is reduced, as wide as one pixel
    of what is shown.

    Args:
        images: see above.
        columns: images per row.
        shown: pixels that the picture is reduced to across, where it has more.

    >>> tile(torch.zeros(6, 1, 8, 8), columns=3).shape
    (19, 28, 3)
    """
    grey = images.detach().float().cpu().clamp(0, 1)
    grey = grey.expand(-1, 3, -1, -1) if grey.shape[1] == 1 else grey
    rows = math.ceil(len(grey) / columns)
    line = max(1, math.ceil(columns * (grey.shape[3] + 1) / shown))
    height, width = grey.shape[2] + line, grey.shape[3] + line
    canvas = torch.full((3, rows * height + line, columns * width + line), 0.6)
    for index, image in enumerate(grey):
        row, column = divmod(index, columns)
        top, left = row * height + line, column * width + line
        canvas[:, top : top + grey.shape[2], left : left + grey.shape[3]] = image
    return canvas.permute(1, 2, 0).numpy()


_MARGIN = 0.1  # inches around a picture
_WIDTH = 9.0  # inches of a picture of grids
_DPI = 100  # pixels per inch, matplotlib's own
_TITLE = 0.35  # inches above it, for its title


def _show(
    figure: Figure,
    pixels: np.ndarray,
    title: str,
    column: int = 0,
    columns: int = 1,
    row: int = 0,
    rows: int = 1,
) -> None:
    """A picture with its title, in one of several columns and rows.

    The place is computed here, because matplotlib's layout takes longer than all of the drawing.
    """
    width, height = figure.get_size_inches()
    across, room = width / columns - 2 * _MARGIN, height / rows - _TITLE - _MARGIN
    scale = min(across / pixels.shape[1], room / pixels.shape[0])
    size = scale * pixels.shape[1], scale * pixels.shape[0]
    left = width / columns * column + _MARGIN + (across - size[0]) / 2
    bottom = height / rows * (rows - 1 - row) + _MARGIN + (room - size[1]) / 2
    axes = figure.add_axes((left / width, bottom / height, size[0] / width, size[1] / height))
    is_reduced = pixels.shape[1] > size[0] * figure.dpi
    axes.imshow(pixels, interpolation="antialiased" if is_reduced else "nearest")
    axes.set_title(title, y=1.0)  # a place that is given need not be searched for
    axes.set_axis_off()


def _stack(grids: Mapping[str, Tensor], columns: int) -> Figure:
    """Grids of images under each other, by their titles."""
    across = (_WIDTH - 2 * _MARGIN) * _DPI
    pictures = {title: tile(images, columns, across) for title, images in grids.items()}
    tallest = max(pixels.shape[0] / pixels.shape[1] for pixels in pictures.values())
    strip = (_WIDTH - 2 * _MARGIN) * tallest + _TITLE + _MARGIN
    figure = Figure(figsize=(_WIDTH, strip * len(pictures)), dpi=_DPI)
    for row, (title, pixels) in enumerate(pictures.items()):
        _show(figure, pixels, title, row=row, rows=len(pictures))
    return figure


def sample_grid(
    vae: VAE, num_images: int = 64, x: Tensor | None = None, columns: int = 16
) -> Figure:
    """z ~ p(z): the mean images E[x | z], and below them samples x ~ p(x | z) of the same z.

    Args:
        vae: the pair.
        num_images: in each grid.
        x: real images, ``(N, C, H, W)``; shown above, as many as there are.
        columns: of each grid.

    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> parts = {"network": MLP((8,)), "likelihood": Bernoulli(2), "guide": DiagNormal}
    >>> vae = build_vae(latent_dim=2, image_shape=(1, 4, 4), **parts)
    >>> figure = sample_grid(vae, num_images=16)
    >>> len(figure.axes)
    2
    """
    with torch.no_grad():
        p_x = vae.model.decode(vae.model.prior().sample((num_images,)))
        means, samples = p_x.mean, p_x.sample()
    grids = {"mean of p(x | z),  z ~ p(z)": means, "sample x ~ p(x | z),  same z": samples}
    if x is not None:
        grids = {"real images x": x[:num_images]} | grids
    return _stack(grids, columns)


def reconstruction_grid(vae: VAE, x: Tensor, columns: int = 16) -> Figure:
    """Originals, and under each of them the mean of p(x | z) for one z ~ q(z | x).

    Args:
        vae: the pair.
        x: images, ``(N, C, H, W)``; a last row that is not full is left out.
        columns: originals per row, at most N.
    """
    columns = min(columns, len(x))
    x = x[: len(x) // columns * columns]
    with torch.no_grad():
        z = vae.guide.posterior(x).sample()
        means = vae.model.decode(z).mean
    rows = [
        row for pair in zip(x.split(columns), means.split(columns), strict=True) for row in pair
    ]
    title = "odd rows: x.   even rows: mean of p(x | z),  z ~ q(z | x)"
    return _stack({title: torch.cat(rows)}, columns)


def latent_figure(vae: VAE, means: Tensor, labels: Tensor) -> Figure:
    """Where the images lie in the latent space, coloured by label.

    With two latent dimensions the decoder's manifold is drawn too: the mean image on a 15 x 15 grid
    of the prior's quantiles. With more dimensions the axes are the two principal directions of the
    posterior means.

    Args:
        vae: the pair.
        means: posterior means of the test images, ``(N, D)``.
        labels: ``(N,)``; all the same where the images have none.
    """
    dims = means.shape[1]
    points = means.detach().double().cpu()
    names = ("z[0]", "z[1]")
    if dims > 2:
        centred = points - points.mean(0)
        _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
        points = centred @ directions[:2].T
        shares = lengths.square() / lengths.square().sum()
        names = (
            f"principal direction 1 ({shares[0]:.0%} of the variance)",
            f"principal direction 2 ({shares[1]:.0%})",
        )
    if dims == 1:
        points = torch.stack([points[:, 0], labels.double().cpu()], 1)
        names = ("z[0]", "label" if len(labels.unique()) > 1 else "")
    if dims == 2:
        figure = Figure(figsize=(12.5, 6), dpi=_DPI)
        _show(figure, _manifold(vae, 6.0 * _DPI), "mean of p(x | z) at the quantiles of p(z)", 0, 2)
        scatter = figure.add_axes((0.56, 0.09, 0.42, 0.85))
    else:
        figure = Figure(figsize=(6, 5.2))
        scatter = figure.add_axes((0.13, 0.11, 0.84, 0.82))
    _scatter(scatter, points, labels.cpu())
    scatter.set(xlabel=names[0], ylabel=names[1])
    scatter.set_title("posterior means of the test images", y=1.0)
    return figure


def _manifold(vae: VAE, shown: float, per_side: int = 15) -> np.ndarray:
    quantiles = torch.linspace(0.5 / per_side, 1 - 0.5 / per_side, per_side)
    across = torch.distributions.Normal(0.0, 1.0).icdf(quantiles)
    up = across.flip(0)  # as in the scatter plot beside it, z[1] grows upwards
    z = torch.stack(torch.meshgrid(up, across, indexing="ij"), -1).flip(-1).reshape(-1, 2)
    with torch.no_grad():
        return tile(vae.model.decode(z.to(vae.device)).mean, per_side, shown)


def _scatter(axes: Axes, points: Tensor, labels: Tensor) -> None:
    classes = labels.unique().tolist()
    for label in classes:
        chosen = points[labels == label]
        colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=14, color=colour, alpha=0.6, linewidths=0)
        if len(classes) == 1:  # the images have no labels
            break
        x, y = chosen.median(0).values.tolist()
        axes.annotate(
            str(label),
            (x, y),
            ha="center",
            va="center",
            weight="bold",
            color="white",
            bbox={"boxstyle": "circle,pad=0.2", "facecolor": colour, "edgecolor": "white"},
        )


def training_figure(history: Mapping[str, Sequence[float]], kept_epoch: int) -> Figure:
    """The ELBO of training and validation images by epoch, and its two parts.

    Args:
        history: metrics by name, epoch by epoch from the first, in nats per image.
        kept_epoch: whose weights the VAE has; marked by a line.

    >>> names = ("train/elbo", "valid/elbo", "valid/reconstruction", "valid/kl")
    >>> figure = training_figure({name: [-30.0, -28.0] for name in names}, kept_epoch=2)
    >>> [axes.get_title() for axes in figure.axes]
    ['ELBO', 'E_q log p(x | z), validation', 'KL(q(z | x) || p(z)), validation']
    """
    panels = {
        "ELBO": ("train/elbo", "valid/elbo"),
        "E_q log p(x | z), validation": ("valid/reconstruction",),
        "KL(q(z | x) || p(z)), validation": ("valid/kl",),
    }
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (title, metrics) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for metric in metrics:
            split = metric.partition("/")[0]
            epochs = range(1, len(history[metric]) + 1)
            axes.plot(epochs, history[metric], color=_SPLIT_COLOURS[split], label=split)
        axes.axvline(kept_epoch, color="0.6", linewidth=1, zorder=0)
        axes.grid(axis="y", alpha=0.3)
        axes.set(xlabel="epoch", ylabel="nats per image", title=title)
    figure.axes[0].legend(loc="lower right", title=f"line: kept epoch ({kept_epoch})")
    return figure


def bounds_figure(
    bounds: Mapping[int, tuple[float, float]], log_px: tuple[float, float], num_samples: int
) -> Figure:
    """ELBO, IWAE-K and log p(x) of one run against the number of samples, +- 2 standard errors.

    Args:
        bounds: by K, with the ELBO at K = 1: (value, standard error), nats per image.
        log_px: importance-sampled log p(x): (value, standard error).
        num_samples: samples behind ``log_px``.

    >>> figure = bounds_figure({1: (-30.0, 0.1), 5: (-28.0, 0.2)}, (-27.0, 0.05), num_samples=100)
    >>> figure.axes[0].get_ylabel()
    'nats per test image (higher is better)'
    """
    points = {**bounds, num_samples: log_px}
    ks = sorted(points)
    values, errors = (np.array([points[k][i] for k in ks]) for i in (0, 1))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(ks, values - 2 * errors, values + 2 * errors, color="#88ccee", alpha=0.6)
    axes.plot(ks, values, "o-", color=BOUND_COLOURS[2], label="IWAE-K bound (K = 1: ELBO)")
    axes.errorbar(
        [num_samples],
        [log_px[0]],
        [2 * log_px[1]],
        fmt="D",
        color=BOUND_COLOURS[-1],
        capsize=4,
        label=f"log p(x), {num_samples:,} samples",
    )
    axes.set(xscale="log", xlabel="importance samples K", ylabel=AXIS)
    axes.set_xticks(ks, [f"{k:,}" for k in ks])
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower right")
    axes.set_title("the bound rises to log p(x); band: 2 Monte Carlo standard errors")
    return figure
