"""Distributions whose score is known exactly, usable everywhere a trained model is."""

from scorediff.data.toy.distributions import Gaussian, GaussianMixture, pinwheel
from scorediff.data.toy.exact import ExactDistribution

__all__ = ["ExactDistribution", "Gaussian", "GaussianMixture", "pinwheel"]
