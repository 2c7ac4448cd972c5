"""What a `Sampling` refuses: rules that a config cannot complete, and rules without effect."""

from functools import partial

import pytest

from scorediff.diffusion import EDM
from scorediff.diffusion.guidance import autoguidance, composed, rescaled
from scorediff.errors import UserError
from scorediff.evaluation.generate import Sampling

NULL = {"label": 3}


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
