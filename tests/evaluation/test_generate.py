"""What a `Sampling` refuses, and what a `Generator` draws with programs that are no tables."""

from functools import partial
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scorediff.data.toy import Gaussian
from scorediff.diffusion import EDM, Denoiser, VPLinear
from scorediff.diffusion import target as targets
from scorediff.diffusion.clipping import clipped
from scorediff.diffusion.guidance import autoguidance, composed, rescaled
from scorediff.errors import UserError
from scorediff.evaluation.generate import Generator, Sampling, Weak
from scorediff.solvers import ancestral, brownian_path, dpm_adaptive, learned_variance
from scorediff.solvers.corrector import langevin

NULL = {"label": 3}
BED = Gaussian(mean=(0.3, -0.2), stds=(0.8, 0.3))


def denoise(x, t, cond=None):
    return x


@pytest.mark.parametrize(("rule", "lacking"), [(composed, "scales"), (autoguidance, "weak")])
def test_a_rule_that_needs_more_than_a_config_has_is_refused(rule, lacking):
    sampling = Sampling(guidance=rule, guidance_scale=2.0)
    with pytest.raises(UserError, match=f"guidance needs {lacking}"):
        sampling.guide(denoise, EDM(), NULL)


def test_a_rule_gets_the_process_where_it_asks_for_it():
    sampling = Sampling(guidance=partial(rescaled, phi=0.5), guidance_scale=2.0)
    assert sampling.guide(denoise, EDM(), NULL) is not denoise


@pytest.mark.parametrize(("scale", "null_cond"), [(1.0, NULL), (2.0, {})])
def test_an_interval_without_guidance_is_refused(scale, null_cond):
    sampling = Sampling(guidance_scale=scale, guidance_interval=(0.1, 1.0))
    with pytest.raises(UserError, match="guidance_interval without guidance"):
        sampling.guide(denoise, EDM(), null_cond)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": brownian_path}, "no corrector and no noise"),
        ({"corrector": langevin}, "no corrector and no noise"),
        ({"t_end": 2.0}, "t_end=2.0"),
    ],
)
def test_rules_of_rows_are_refused_with_an_adaptive_solver(options, message):
    with pytest.raises(UserError, match=message):
        Sampling(**options).program(dpm_adaptive, VPLinear())


def gaussian_generator(**options):
    model = SimpleNamespace(process=VPLinear(), bind=lambda params: BED.denoiser(VPLinear()))
    return Generator(denoiser=model, shape=(2,), null_cond={}, sampling=Sampling(**options))


def test_adaptive_samples_are_the_models_and_their_evaluations_are_counted():
    generate = gaussian_generator(batch_size=200)
    program = generate.sampling.program(dpm_adaptive, VPLinear())
    drawn = generate(None, program, 500, seed=0)
    low, high = drawn.nfe_range
    assert low < drawn.nfe < high and (low - 1) % 3 == (high - 1) % 3 == 0  # 3 an attempt, 1 last
    assert f"{drawn.nfe:.1f} network evaluations each on average" in drawn.spent()
    np.testing.assert_allclose(drawn.x0.mean(axis=0), BED.mean, atol=0.15)
    np.testing.assert_allclose(drawn.x0.std(axis=0), BED.stds, rtol=0.15)
    np.testing.assert_allclose(generate(None, program, 3, seed=0).x0, drawn.x0[:3], atol=1e-5)


def test_samples_that_do_not_arrive_are_an_error():
    generate = gaussian_generator(batch_size=4)
    program = generate.sampling.program(partial(dpm_adaptive, max_evaluations=6), VPLinear())
    with pytest.raises(UserError, match="4 of 4 samples had not reached the end"):
        generate(None, program, 4, seed=0)


class Doubled(nn.Module):
    """Answers its input, and r = -1, which is v = 0, in the other half of its channels."""

    @nn.compact
    def __call__(self, x, noise, cond, *, train=False):
        return jnp.concatenate([x, -jnp.ones_like(x)], axis=-1)


def test_a_learned_variance_at_its_lower_end_is_ancestral_sampling():
    process = VPLinear()
    denoiser = Denoiser(
        network=Doubled(), process=process, target=targets.x0, learned_variance=True
    )
    generate = Generator(
        denoiser=denoiser, shape=(2,), null_cond={}, sampling=Sampling(nfe=6, batch_size=4)
    )
    learned, small = (
        generate.sampling.program(solver, process) for solver in (learned_variance, ancestral)
    )
    generate.check(learned)
    mine, theirs = (generate({}, program, 4, seed=0) for program in (learned, small))
    np.testing.assert_allclose(mine.x0, theirs.x0, rtol=1e-4, atol=1e-5)
    assert mine.nfe == theirs.nfe == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": partial(rescaled, phi=0.5)}, "classifier_free guidance without interval"),
        ({"guidance_interval": (0.1, 1.0)}, "classifier_free guidance without interval"),
    ],
)
def test_rules_that_leave_no_variance_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Sampling(**options).guide_variance(lambda x, t, cond: (x, x), NULL)


def test_a_threshold_acts_on_the_estimate_and_not_on_the_variance():
    sampling = Sampling(threshold=clipped)
    x = jnp.array([[3.0, -0.5]])
    x0_hat, v = sampling.guide_variance(lambda x, t, cond: (x, 2 * x), {})(x, 0.5, None)
    np.testing.assert_array_equal(x0_hat, [[1.0, -0.5]])
    np.testing.assert_array_equal(v, 2 * x)


def test_a_model_without_variances_is_refused():
    generate = Generator(
        denoiser=Denoiser(network=Doubled(), process=VPLinear()),
        shape=(2,),
        null_cond={},
        sampling=Sampling(),
    )
    program = generate.sampling.program(learned_variance, VPLinear())
    with pytest.raises(UserError, match="learned_variance=True"):
        generate.check(program)


def test_autoguidance_moves_away_from_the_weak_model_at_twice_the_cost():
    weak_bed, process = Gaussian(mean=(0.0, 0.0), stds=(1.0, 1.0)), VPLinear()
    model = SimpleNamespace(process=process, bind=lambda params: BED.denoiser(process))
    other = SimpleNamespace(process=process, bind=lambda params: weak_bed.denoiser(process))
    sampling = Sampling(
        guidance=autoguidance, weak="runs/weak", guidance_scale=3.0, nfe=4, batch_size=2
    )
    generate = Generator(
        denoiser=model,
        shape=(2,),
        null_cond={},  # it needs no condition
        sampling=sampling,
        weak=Weak(other, {}, "runs/weak at step 1"),
    )
    x, t = jnp.array([[0.4, -1.0]]), jnp.asarray(0.5)
    strong, weak = (bed.denoiser(process)(x, t) for bed in (BED, weak_bed))
    np.testing.assert_allclose(generate.denoise({})(x, t), weak + 3 * (strong - weak), rtol=1e-5)
    assert generate({}, sampling.program(ancestral, process), 2, seed=0).nfe == 8


def test_a_weak_model_that_no_rule_asks_for_is_refused():
    with pytest.raises(UserError, match="set guidance=autoguidance"):
        Sampling(weak="runs/weak", guidance_scale=2.0)
