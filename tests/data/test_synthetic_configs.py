"""Every kind of made data goes the way of an experiment: trained, then sampled."""

from pathlib import Path

import jax
import numpy as np
import pytest

from scorediff import experiment
from scorediff.configfile import load_config
from scorediff.training.files import JsonLines

CONFIGS = Path(__file__).parents[2] / "configs"
STEPS = 60
KINDS = ["video", "audio", "audio_unet", "points", "voxels", "voxels_unet"]


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_tiny_learns_and_is_sampled(name, tmp_path):
    overrides = [
        f"--config.train.steps={STEPS}",
        f"--config.train.save_every={STEPS}",
        "--config.optimizer.learning_rate.peak_value=0.01",
    ]
    wired = experiment.Experiment(config=load_config(f"{CONFIGS / name}.py:tiny", overrides))
    experiment.train(wired, tmp_path / "run")
    losses = [row["loss"] for row in JsonLines(tmp_path / "run" / "metrics.jsonl").rows()]
    assert len(losses) == STEPS and np.isfinite(losses).all()
    # The velocity x0 - eps has a mean square of 1 + mean x0^2, which is what answering 0 costs
    x0 = wired.pipeline.batch(0)["x0"]
    assert losses[0] == pytest.approx(1 + np.square(x0).mean(), rel=0.35)
    assert np.mean(losses[-15:]) < 0.8 * np.mean(losses[:5])
    out = tmp_path / "samples.npz"
    experiment.sample(wired, tmp_path / "run", n=3, seed=1, out=out)
    samples = np.load(out)
    assert samples["x0"].shape == (3, *wired.shape) and np.isfinite(samples["x0"]).all()
    assert samples["label"].tolist() == [0, 1, 2 % wired.loss.null_cond["label"]]
