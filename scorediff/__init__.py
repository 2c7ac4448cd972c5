"""Score-based generative models in JAX, with measured correctness."""
