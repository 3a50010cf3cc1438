"""A Gaussian process for few observations of many features. Imported only where one is fitted, as scikit-learn is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import cho_solve
from scipy.optimize import minimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Hyperparameter, Kernel, Matern, WhiteKernel
from threadpoolctl import ThreadpoolController

#: Observations that hyperparameters are chosen on; all are used once they are.
_CHOSEN_ON = 120
#: Steps of that choice, from the prior and from an earlier choice.
_STEPS, _STEPS_AGAIN = 25, 8
#: Standard deviation of the prior over each log hyperparameter.
_PRIOR_STD = 1.0
#: Added to the diagonal, in squared units of standardized values: what equal inputs may differ by.
_JITTER = 1e-6


class Columns(Kernel):  # type: ignore[misc]
    """A kernel that sees some of the columns: ``k(x, y) = inner(x[start:stop], y[start:stop])``.

    Args:
        kernel: the inner one.
        start: first column.
        stop: the one after the last.
    """

    def __init__(self, kernel: Kernel, start: int, stop: int) -> None:
        self.kernel = kernel
        self.start = start
        self.stop = stop

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """As scikit-learn clones it by."""
        params = {"kernel": self.kernel, "start": self.start, "stop": self.stop}
        if deep:
            params |= {f"kernel__{name}": value for name, value in self.kernel.get_params().items()}
        return params

    @property
    def hyperparameters(self) -> list[Hyperparameter]:
        """Those of the inner kernel."""
        return [
            Hyperparameter(f"kernel__{h.name}", h.value_type, h.bounds, h.n_elements)
            for h in self.kernel.hyperparameters
        ]

    @property
    def theta(self) -> np.ndarray:
        """Logarithms of the inner kernel's hyperparameters."""
        return np.asarray(self.kernel.theta)

    @theta.setter
    def theta(self, theta: np.ndarray) -> None:
        self.kernel.theta = theta

    @property
    def bounds(self) -> np.ndarray:
        """Of `theta`."""
        return np.asarray(self.kernel.bounds)

    def __call__(self, x: np.ndarray, y: np.ndarray | None = None, eval_gradient: bool = False) -> Any:
        """The inner kernel of the columns, shape (n, k); its gradient as well if asked for, shape (n, n, theta)."""
        y = None if y is None else y[:, self.start : self.stop]
        return self.kernel(x[:, self.start : self.stop], y, eval_gradient=eval_gradient)

    def diag(self, x: np.ndarray) -> np.ndarray:
        """The diagonal of ``self(x)``."""
        return np.asarray(self.kernel.diag(x[:, self.start : self.stop]))

    def is_stationary(self) -> bool:
        """Whether the inner kernel is."""
        return bool(self.kernel.is_stationary())


@dataclass(frozen=True)
class Process:
    """A fitted Gaussian process on standardized inputs and outputs.

    Attributes:
        regressor: scikit-learn's.
        shift, scale: of the inputs, shape (d,).
        centre, unit: of the outputs.
        inflation: factor on every standard deviation, so that left-out observations lie as far off as is claimed.
    """

    regressor: GaussianProcessRegressor
    shift: np.ndarray
    scale: np.ndarray
    centre: float
    unit: float
    inflation: float

    @property
    def theta(self) -> np.ndarray:
        """Logarithms of the hyperparameters."""
        return np.asarray(self.regressor.kernel_.theta)

    def predict(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations of the function, without an observation's noise; shape (n,) each."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # variances that rounding makes negative are set to 0
            mean, std = self.regressor.predict((inputs - self.shift) / self.scale, return_std=True)
        # WhiteKernel's share of the diagonal is noise of the observation.
        noise = float(np.exp(self.theta[-1]))
        std = np.sqrt(np.maximum(std**2 - noise, _JITTER))
        return self.centre + self.unit * mean, self.unit * self.inflation * std


def fit_process(
    inputs: np.ndarray, outputs: np.ndarray, few: int, rng: np.random.Generator, theta: np.ndarray | None = None
) -> Process:
    """Fit by maximum a posteriori: an anisotropic Matern on the first columns, a weak linear part on all.

    k(x, y) = a M_5/2(x_few, y_few; one length each) + b M_5/2(x_rest, y_rest; one length) + c x·y / d + noise, on
    standardized columns. Log hyperparameters have a Gaussian prior, whose centre is a smooth function that depends on
    everything a little, so that a dozen observations do not pass for a hundred. Standard deviations are then widened,
    never narrowed, by the root mean square of the standardized leave-one-out residuals.

    Args:
        inputs: shape (n, d), n >= 2, finite; constant columns are allowed.
        outputs: shape (n,), finite.
        few: how many of the first columns get a length of their own.
        rng: chooses on which observations hyperparameters are chosen, if there are many.
        theta: an earlier choice to start from.

    References:
        Rasmussen and Williams, 2006, "Gaussian Processes for Machine Learning", chapter 5, equations 5.10 to 5.12;
        Hvarfner et al., 2024, "Vanilla Bayesian optimization performs great in high dimensions", whose prior lengths
        grow as the root of d.
    """
    shift = inputs.mean(axis=0)
    scale = inputs.std(axis=0)
    # A column that never changed yet: its own size is the unit, so that what differs in it counts as far away.
    scale = np.where(scale > 1e-9 * np.maximum(1.0, np.abs(shift)), scale, np.maximum(1.0, np.abs(shift)))
    x = (inputs - shift) / scale
    centre, unit = float(outputs.mean()), float(outputs.std())
    unit = unit if unit > 1e-9 * max(1.0, abs(centre)) else max(1e-3, 1e-3 * abs(centre))
    y = (outputs - centre) / unit
    kernel = _kernel(x.shape[1], few)
    prior = kernel.theta.copy()
    if theta is not None and theta.shape == prior.shape:
        steps, start = _STEPS_AGAIN, theta
    else:
        steps, start = _STEPS, prior

    def climb(objective: Callable[..., Any], initial: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, float]:
        def penalized(at: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = objective(at)
            away = (at - prior) / _PRIOR_STD
            return float(value + 0.5 * away @ away), gradient + away / _PRIOR_STD

        found = minimize(penalized, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": steps})
        return found.x, float(found.fun)

    some = np.arange(len(x)) if len(x) <= _CHOSEN_ON else np.sort(rng.choice(len(x), _CHOSEN_ON, replace=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hyperparameters at a bound are as good as others
        regressor = GaussianProcessRegressor(kernel, alpha=_JITTER, optimizer=climb).fit(x[some], y[some])
        if len(some) < len(x):
            regressor = _with_kernel(regressor.kernel_).fit(x, y)
    return Process(regressor, shift, scale, centre, unit, _inflation(regressor))


def believing(process: Process, inputs: np.ndarray, means: np.ndarray) -> Process:
    """Kriging believer: the process as if `means` had been observed at `inputs`, hyperparameters as they were.

    Args:
        process: fitted.
        inputs: shape (k, d).
        means: shape (k,).

    References:
        Ginsbourger, Le Riche and Carraro, 2010, "Kriging is well-suited to parallelize optimization".
    """
    old = process.regressor
    x = np.vstack([old.X_train_, (inputs - process.shift) / process.scale])
    y = np.append(old.y_train_, (means - process.centre) / process.unit)
    regressor = _with_kernel(old.kernel_).fit(x, y)
    return Process(regressor, process.shift, process.scale, process.centre, process.unit, process.inflation)


def one_thread() -> AbstractContextManager[Any]:
    """Linear algebra on one thread: for a few hundred rows more only wait, on cores that candidates train on."""
    limited: AbstractContextManager[Any] = _threads().limit(limits=1)
    return limited


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


def _with_kernel(kernel: Kernel) -> GaussianProcessRegressor:
    return GaussianProcessRegressor(kernel, alpha=_JITTER, optimizer=None)


def _kernel(d: int, few: int) -> Kernel:
    rest = d - few
    kernel = ConstantKernel(0.1 / d, (1e-6 / d, 10.0 / d)) * DotProduct(sigma_0=1.0, sigma_0_bounds="fixed")
    if few:
        lengths = np.full(few, 1.5 * np.sqrt(few))
        kernel += Columns(
            ConstantKernel(1.0, (1e-3, 1e2)) * Matern(lengths, (0.1, 1e3), nu=2.5), 0, few
        )  # fmt: skip
    if rest:
        kernel += Columns(
            ConstantKernel(0.2 if few else 1.0, (1e-4, 1e2)) * Matern(1.5 * np.sqrt(rest), (0.1, 1e3), nu=2.5), few, d
        )
    return kernel + WhiteKernel(0.01, (1e-5, 1.0))


def _inflation(regressor: GaussianProcessRegressor) -> float:
    inverse = cho_solve((regressor.L_, True), np.eye(len(regressor.L_)))
    z = np.ravel(regressor.alpha_) / np.sqrt(np.diag(inverse))
    return float(np.clip(np.sqrt(np.mean(z**2)), 1.0, 3.0))
