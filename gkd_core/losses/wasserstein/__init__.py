"""W1 between feature maps seen as clouds of atoms: four solvers behind one function."""

from gkd_core.losses.wasserstein.loss import NORMALISATIONS, SOLVERS, Normalisation, Solver, wasserstein_loss

__all__ = ["NORMALISATIONS", "SOLVERS", "Normalisation", "Solver", "wasserstein_loss"]
