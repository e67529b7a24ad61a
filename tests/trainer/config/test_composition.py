"""The short way to a configuration is the long one, but for the time it takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainer.base.errors import ConfigError
from trainer.config import keys as keys_module
from trainer.config import merge
from trainer.config.compose import _hydra_parser, compose, parse
from trainer.config.keys import GROUPS, keys, option_names
from trainer.config.plain import to_dict
from trainer.config.schema import Config

SCHEMA = keys()
KEYS = [key for key in SCHEMA if not key.startswith("choices")]
values = st.one_of(
    st.integers(-3, 3000).map(str),
    st.floats(allow_nan=True).map(repr),
    st.text(max_size=6),
    st.sampled_from(
        [
            "", "null", "NULL", "true", "no", "on", "False", "auto", "cuda", "adamw", "constant", "bf16", "???", "-0.0", "0.0",
            "1e-3", "1_0", "0x10", "0o7", "1e400", "-inf", "nan", "'7'", '"true"', "'null'", "a b", "[1]", "[]", "{a:1}",
            "${seed}", "${data.img_size}", "'${nothing}'", "\\${seed}", "${oc.env:HOME}", "int(3)", "1,2", "64", "384", "x:y",
        ]
    ),
)  # fmt: skip
words = st.lists(
    st.one_of(
        st.builds("{}={}".format, st.sampled_from(KEYS), values),
        st.builds("data.img_size={}".format, values),
        st.builds("seed={}".format, values),
        st.sampled_from(
            [
                "model=resnet50", "model=convnext_base", "data=transformer_384", "training=transformer",
                "data.train_transforms.0.LongestMaxSize.max_size=7", "data.train_transforms=[{HorizontalFlip:{p:0.5}}]",
                "data.val_transforms.1.PadIfNeeded.fill=[0,0,0]", "data.train_transforms.3.Rotate.p=${training.lr}",
            ]
        ),
    ),
    max_size=4,
)  # fmt: skip


def outcome(overrides: list[str]) -> str:
    """The configuration with the types of its values, or the message."""
    try:
        return repr(to_dict(compose(overrides)))
    except ConfigError as error:
        return f"fault: {error}"


@given(words)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_short_way_gives_what_the_long_one_gives(overrides: list[str]) -> None:
    short, quick = outcome(overrides), merge.fast
    merge.fast = lambda chosen, values: None  # type: ignore[assignment]
    try:
        assert short == outcome(overrides)
    finally:
        merge.fast = quick  # type: ignore[assignment]


def test_plain_values_take_the_short_way_and_others_do_not() -> None:
    chosen = ("resnet50", "transformer_384", "")
    composed = merge.fast(chosen, [("seed=7", "seed", 7), ("data.img_size=96", "data.img_size", 96)])
    assert isinstance(composed, Config) and (composed.seed, composed.data.img_size) == (7, 96)
    assert composed.data.train_transforms[0] == {"LongestMaxSize": {"max_size": 96, "interpolation": 1}}
    for key, value in (
        ("seed", "x"),
        ("seed", "${data.img_size}"),
        ("data.root", "???"),
        ("data.val_transforms", None),
    ):
        assert merge.fast(chosen, [(f"{key}={value}", key, value)]) is None


@given(st.sampled_from([*KEYS, *GROUPS, "null", "true", "x.y"]), st.from_regex(r"[+-]?[0-9_]{1,19}", fullmatch=True))
@settings(max_examples=200, deadline=None)
def test_whole_numbers_are_read_as_hydra_reads_them(key: str, number: str) -> None:
    override = _hydra_parser().parse_override(f"{key}={number}")
    expected = (override.key_or_group, override.value())
    assert repr(parse(f"{key}={number}")) == repr(expected)


def test_configurations_share_nothing() -> None:
    first, second = compose(["seed=1"]), compose(["seed=1"])
    plain = to_dict(first)
    first.data.train_transforms[0]["LongestMaxSize"]["max_size"] = 1
    first.choices["model"] = "other"
    plain["data"]["train_transforms"].clear()
    assert second == compose(["seed=1"]) != first
    assert to_dict(second) == OmegaConf.to_container(OmegaConf.structured(second))


def test_a_combination_is_the_same_after_others() -> None:
    """The first one of a process is composed alone, the others with all options at once."""
    options = [["", *option_names(group)] for group in GROUPS]
    merge._compose_groups.cache_clear()
    merge._compose_groups("", "", "")
    assert merge._every_option() is not None
    for position in range(max(map(len, options))):
        chosen = tuple(names[position % len(names)] for names in options)
        later = merge._compose_groups(*chosen)
        merge._compose_groups.cache_clear()
        alone = merge._compose_groups(*chosen)
        assert repr(OmegaConf.to_container(later)) == repr(OmegaConf.to_container(alone))


def test_options_that_reach_into_other_groups_are_composed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(keys_module.CONF_DIR, tmp_path / "conf")
    (tmp_path / "conf" / "data" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    monkeypatch.setattr(merge, "CONF_DIR", tmp_path / "conf")
    monkeypatch.setattr(keys_module, "CONF_DIR", tmp_path / "conf")
    caches = (option_names, merge._compose_groups, merge._every_option)
    for cache in caches:
        cache.cache_clear()
    try:
        assert merge._compose_groups("", "", "").seed == 42
        assert merge._compose_groups("resnet34", "mine", "").seed == 7
        assert merge._every_option() is None
    finally:
        for cache in caches:
            cache.cache_clear()
