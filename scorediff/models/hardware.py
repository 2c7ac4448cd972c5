"""What networks ask about the devices of this process, where the quicker way differs."""

import jax


def on_cpu() -> bool:
    """Whether this process computes on CPUs."""
    return jax.local_devices()[0].platform == "cpu"
