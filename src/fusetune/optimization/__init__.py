"""The search over λ and over w: surrogates, acquisition, samplers, one loop, Pareto front."""

RIVALS = ("random", "tpe", "nsga2", "cmaes", "gp")
"""Samplers of Optuna that can take the place of the one over w; see `rivals`."""
