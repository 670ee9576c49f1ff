"""The sample sites of a user's own Pyro program: read, checked, and turned into real vectors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform, biject_to

from vae_pyro.errors import EstimatorError
from vae_pyro.log_marginal.proposals import inflate

Site = Any
"""A message of Pyro's: a dictionary with ``name``, ``fn``, ``value``, ``is_observed``, .."""


@dataclass(frozen=True)
class Execution:
    """One run of a program on a batch of so many rows.

    Attributes:
        latent: the values of its latent sites by name, each ``(*plates, rows, *event)``.
        plates: how many plates each of them has beside that of the rows.
        log_latent: sum of their log-probabilities, ``(rows,)``.
        log_observed: likewise of the observed sites, ``(rows,)``.
    """

    latent: dict[str, Tensor]
    plates: dict[str, int]
    log_latent: Float[Tensor, " rows"]
    log_observed: Float[Tensor, " rows"]


def run(
    role: str, program: Callable[..., Any], x: Shaped[Tensor, " rows *event"], *handlers: Messenger
) -> Execution:
    """Run a program within some handlers, and read its sites.

    Args:
        role: ``model`` or ``guide``, for error messages.
        program: of x.
        x: ``(rows, *event)``.
        handlers: that change how it is run, the first innermost.

    Raises:
        EstimatorError: where the program fails, or has a site that is not per image.
    """
    for handler in (*handlers, _WholePlates(role)):
        program = handler(program)
    try:
        trace = poutine.trace(program).get_trace(x)
    except torch.OutOfMemoryError:  # a RuntimeError, but not the program's fault
        raise
    except (RuntimeError, ValueError) as error:
        raise EstimatorError(
            f"the {role} cannot be run on a batch of {len(x)} rows: {_first_line(error)}\nEvery "
            "image is repeated once per sample, so a model and a guide must take batches of any "
            "size and have no parameter with one entry per image"
        ) from error
    sites = [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site)
    ]
    log_latent = log_observed = torch.zeros(len(x), device=x.device)
    for site in sites:
        _check(role, site, len(x))
        if site["is_observed"]:
            log_observed = log_observed + _log_prob(role, site)
        else:
            log_latent = log_latent + _log_prob(role, site)
    _check_one_row_plate(role, sites)
    observed = [site["name"] for site in sites if site["is_observed"]]
    if role == "model" and not observed:
        raise EstimatorError(
            'the model observes nothing: it needs a site such as pyro.sample("x", ..., obs=x)'
        )
    if role == "guide" and observed:
        raise EstimatorError(f"the guide observes {_quoted(observed)}: only the model observes x")
    latent = [site for site in sites if not site["is_observed"]]
    return Execution(
        {site["name"]: site["value"] for site in latent},
        {site["name"]: num_plates(site) for site in latent},
        log_latent,
        log_observed,
    )


def num_plates(site: Site) -> int:
    """Beside that of the rows."""
    return len(site["fn"].batch_shape) - 1


def check_same(model: Mapping[str, Tensor], guide: Mapping[str, Tensor]) -> None:
    """Refuse a model and a guide with different latent sites.

    Raises:
        EstimatorError: with the names of both.
    """
    if model.keys() != guide.keys():
        raise EstimatorError(
            f"the model and the guide need the same latent sites, but the model samples "
            f"{_quoted(model)} and the guide {_quoted(guide)}"
        )


def _check(role: str, site: Site, rows: int) -> None:
    name = f'site "{site["name"]}" of the {role}'
    if site["infer"].get("enumerate"):
        raise EstimatorError(
            f"{name} is marked to be enumerated, and the estimators sample every latent site: "
            "remove the mark, or sum it out in the likelihood (as MixtureSameFamily does)"
        )
    if not _row_frames(site):
        raise EstimatorError(
            f"{name} is not per image: it stands outside every plate at dimension -1, so one value "
            'is shared by all images. Put it inside pyro.plate("images", len(x)), or make it a '
            "parameter (pyro.param)"
        )
    if site["fn"].batch_shape[-1] != rows:
        raise EstimatorError(
            f"{name} has one value for each of {site['fn'].batch_shape[-1]} images, and x has "
            f'{rows}: the plate at dimension -1 must be pyro.plate("images", len(x)). What all '
            "images share must be a parameter (pyro.param)"
        )


def _check_one_row_plate(role: str, sites: Sequence[Site]) -> None:
    """Refuse two plates at dimension -1: the size of another one may equal that of the batch."""
    row_plates = {frame.name for site in sites for frame in _row_frames(site)}
    if len(row_plates) > 1:
        raise EstimatorError(
            f"the {role} has the plates {_quoted(sorted(row_plates))} at dimension -1, where only "
            "that of the images may be: outside it, one value is shared by all images. Put every "
            'site inside one pyro.plate("images", len(x)), and further plates at dimension -2, or '
            "make what is shared a parameter (pyro.param)"
        )


def _row_frames(site: Site) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.dim == -1]


def _log_prob(role: str, site: Site) -> Tensor:
    """Per row, without scales; what is masked counts 0."""
    try:
        log_prob: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        way_out = "check x"
        if torch.as_tensor(site["value"]).isnan().any():
            way_out = (
                "it is NaN; where a mask hides it, replace it by any value of the support, because "
                "masked values are checked too"
            )
        raise EstimatorError(
            f'site "{site["name"]}" of the {role} has a value outside its support, or a parameter '
            f"that is out of range: {_first_line(error)}; {way_out}"
        ) from error
    if site["mask"] is not None:
        log_prob = torch.where(torch.as_tensor(site["mask"]), log_prob, 0.0)
    return log_prob.reshape(-1, log_prob.shape[-1]).sum(0)


def _first_line(error: Exception) -> str:
    """Without the tensors that follow it."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rstrip(":")


def _quoted(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names) or "none"


def _is_latent(site: Site) -> bool:
    return not site["is_observed"] and not poutine.util.site_is_subsample(site)


class _WholePlates(Messenger):  # type: ignore[misc]  # Pyro's classes are untyped
    """Refuses a plate that selects some of its entries: their density is not that of all."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def _pyro_post_sample(self, site: Site) -> None:
        if not poutine.util.site_is_subsample(site):
            return
        size, selected = site["fn"].size, len(site["value"])
        if selected != size:
            raise EstimatorError(
                f'plate "{site["name"]}" of the {self._role} selects {selected} of its {size} '
                "entries, and the density of a part is not that of the whole: leave subsample_size "
                "and subsample out. x itself may be any batch of images, inside "
                'pyro.plate("images", len(x))'
            )


class Given(Messenger):  # type: ignore[misc]
    """The latent sites take these values."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, site: Site) -> None:
        if not _is_latent(site) or site["name"] not in self._values:
            return
        value, fn = self._values[site["name"]], site["fn"]
        if fn._validate_args and not fn.support.check(value).all():
            raise EstimatorError(
                f'site "{site["name"]}": the guide and the model have different supports, and some '
                f"values that one of them samples lie outside that of the other, {fn.support}: "
                "give the guide a distribution with the support of the model's"
            )
        site["value"], site["done"] = value, True


class Widened(Messenger):  # type: ignore[misc]
    """The scale of every latent site is multiplied."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def _pyro_sample(self, site: Site) -> None:
        if self._factor != 1 and _is_latent(site):
            try:
                site["fn"] = inflate(site["fn"], self._factor)
            except EstimatorError as error:
                raise EstimatorError(f'site "{site["name"]}" of the guide: {error}') from error


class ToUnconstrained(Messenger):  # type: ignore[misc]
    """Records the latent sites as real vectors, their parts in the order of the model.

    Args:
        rows: of the batch.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows
        self._parts: list[Tensor] = []

    def _pyro_post_sample(self, site: Site) -> None:
        if _is_latent(site):
            _check("model", site, self._rows)
            u = _transform(site).inv(site["value"]).movedim(num_plates(site), 0)
            self._parts.append(u.reshape(self._rows, -1))

    def vectors(self) -> Float[Tensor, "rows dims"]:
        """``(rows, D)``."""
        return torch.cat(self._parts, 1)


class FromUnconstrained(Messenger):  # type: ignore[misc]
    """The latent sites take the values T(u) of real vectors.

    Args:
        u: ``(rows, D)``, as from ``ToUnconstrained``.

    Attributes:
        log_det: log |det dT(u)/du|, ``(rows,)``.
    """

    def __init__(self, u: Float[Tensor, "rows dims"]) -> None:
        super().__init__()
        self._u, self._used = u, 0
        self.log_det = u.new_zeros(len(u))

    def _pyro_sample(self, site: Site) -> None:
        if not _is_latent(site):
            return
        transform, rows = _transform(site), len(self._u)
        plates = site["fn"].batch_shape[:-1]
        shape = transform.inverse_shape(site["fn"].shape())
        event = shape[len(plates) + 1 :]
        size = (plates + event).numel()
        columns = self._u[:, self._used : self._used + size]
        self._used += size
        u = columns.reshape(rows, *plates, *event).movedim(0, len(plates))
        site["value"], site["done"] = transform(u), True
        log_det = transform.log_abs_det_jacobian(u, site["value"])
        self.log_det = self.log_det + log_det.movedim(len(plates), 0).reshape(rows, -1).sum(1)


def _transform(site: Site) -> Transform:
    """From all real numbers to the support of a latent site.

    Raises:
        EstimatorError: where there is none, as for a discrete site.
    """
    support = site["fn"].support
    if support.is_discrete:
        raise EstimatorError(
            f'site "{site["name"]}" of the model is discrete, and AIS moves along gradients: use '
            "importance sampling, or sum the site out in the likelihood"
        )
    try:
        transform: Transform = biject_to(support)
    except NotImplementedError as error:
        raise EstimatorError(
            f'site "{site["name"]}" of the model: its support {support} has no transform from the '
            "real numbers, which AIS needs; use importance sampling"
        ) from error
    return transform
