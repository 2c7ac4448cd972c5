"""Configs of published models: defaults, unknown and unsupported fields, values a level."""

import pytest

from scorediff.errors import UserError
from scorediff.interop import settings

DEFAULTS = {"width": 8, "act": "silu"}


def test_absent_fields_are_filled_and_stray_ones_passed_over():
    config = {"width": 4, "_class_name": "X", "_diffusers_version": "0.1", "sample_size": 64}
    got = settings.complete(config, DEFAULTS, unused=("sample_size",))
    assert got == {"width": 4, "act": "silu"}
    assert DEFAULTS == {"width": 8, "act": "silu"}


def test_unknown_fields_are_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"^Net has a field that is not known here: widht.*width"):
        settings.complete({"widht": 4, "_class_name": "Net"}, DEFAULTS)
    with pytest.raises(UserError, match="the config has a field that is not known here: zzz"):
        settings.complete({"zzz": None}, DEFAULTS)


def test_a_null_is_a_value():
    assert settings.complete({"act": None}, DEFAULTS)["act"] is None


def test_unsupported_values_are_refused_by_name():
    settings.only(DEFAULTS, width=8, act=("gelu", "silu"))
    with pytest.raises(UserError, match=r"width=8 is not supported here, only 4$"):
        settings.only(DEFAULTS, width=4)
    message = "^Net: act='silu' is not supported here, only 'gelu' or None$"
    with pytest.raises(UserError, match=message):
        settings.only({**DEFAULTS, "_class_name": "Net"}, act=("gelu", None))


@pytest.mark.parametrize(
    ("value", "want"), [(3, (3, 3)), ([3, 4], (3, 4)), ((3, 4), (3, 4)), (None, (None, None))]
)
def test_one_value_a_level(value, want):
    assert settings.per_level(value, 2, "heads") == want


def test_another_number_of_values_is_refused():
    with pytest.raises(
        UserError, match=r"heads should have 2 values, one a level, got \[1, 2, 3\]"
    ):
        settings.per_level([1, 2, 3], 2, "heads")
