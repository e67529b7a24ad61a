"""The short way to a configuration is the long one, but for the time it takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainer.base.errors import ConfigError
from trainer.config import keys as keys_module
from trainer.config import merge
from trainer.config.compose import _hydra_parser, compose, parse
from trainer.config.keys import GROUPS, keys, option_names
from trainer.config.merge import Value
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
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_short_way_gives_what_the_long_one_gives(overrides: list[str]) -> None:
    short = outcome(overrides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "fast", lambda chosen, values: None)
        patch.setattr(merge, "quick_faults", lambda values: [])
        assert short == outcome(overrides)


def test_plain_values_take_the_short_way_and_others_do_not() -> None:
    chosen = ("resnet50", "transformer_384", "")
    composed = merge.fast(chosen, [Value("seed=7", "seed", 7), Value("data.img_size=96", "data.img_size", 96)])
    assert isinstance(composed, Config) and (composed.seed, composed.data.img_size) == (7, 96)
    assert composed.data.train_transforms[0] == {"LongestMaxSize": {"max_size": 96, "interpolation": 1}}
    for key, value in (
        ("seed", "x"),
        ("seed", "${data.img_size}"),
        ("data.root", "???"),
        ("data.root", "${model.name}"),
        ("data.val_transforms", None),
    ):
        assert merge.fast(chosen, [Value(f"{key}={value}", key, value)]) is None


def test_lists_and_references_within_a_section_take_the_short_way() -> None:
    resize = [{"Resize": {"height": "${data.img_size}", "width": 7}}]
    values = [Value("a", "data.val_transforms", resize), Value("b", "data.img_size", 96)]
    values += [Value("c", "data.val_transforms.0.Resize.width", 8), Value("d", "training.teachers", ["a.ckpt"])]
    composed = merge.fast(("resnet50", "transformer_384", ""), values)
    assert composed is not None and composed == merge.slow(("resnet50", "transformer_384", ""), values)
    assert composed.data.val_transforms == [{"Resize": {"height": 96, "width": 8}}]


plain_texts = st.one_of(
    st.from_regex(r"[+-]?[0-9_]{1,19}", fullmatch=True),
    st.from_regex(r"[+-]?[0-9_]{0,4}\.?[0-9_]{0,4}([eE][+-]?[0-9_]{0,3})?", fullmatch=True),
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,6}", fullmatch=True),
    st.sampled_from(["null", "Null", "true", "FALSE", "nan", "NaN", "inf", "-inf", "Inf", "nulls", "in", "e1", "_", "a-", "1e", "1.", "01", "00.5", ".5", "é"]),
)  # fmt: skip


@given(st.sampled_from([*KEYS, *GROUPS, "null", "true", "x.y"]), plain_texts)
@settings(max_examples=600, deadline=None)
def test_plain_words_are_read_as_hydra_reads_them(key: str, text: str) -> None:
    assert repr(_read(parse, f"{key}={text}")) == repr(_read(_by_hydra, f"{key}={text}"))


def _by_hydra(text: str) -> tuple[str, Any]:
    override = _hydra_parser().parse_override(text)
    return override.key_or_group, override.value()


def _read(reader: Callable[[str], Any], text: str) -> Any:
    try:
        return reader(text)
    except (ConfigError, HydraException):
        return "an error"


def test_configurations_share_nothing() -> None:
    first, second = compose(["seed=1"]), compose(["seed=1"])
    plain = to_dict(first)
    first.data.train_transforms[0]["LongestMaxSize"]["max_size"] = 1
    first.choices["model"] = "other"
    plain["data"]["train_transforms"].clear()
    assert second == compose(["seed=1"]) != first
    assert to_dict(second) == OmegaConf.to_container(OmegaConf.structured(second))


@pytest.mark.parametrize("model", ["", *option_names("model")])
def test_an_option_is_what_hydra_composes(model: str) -> None:
    """Each option of each group once, with the options that its defaults name."""
    position = ["", *option_names("model")].index(model)
    options = [["", *option_names(group)] for group in GROUPS]
    chosen = tuple(names[position % len(names)] for names in options)
    assert repr(merge._from_files(*chosen)) == repr(merge._by_hydra(*chosen))
    short = merge.fast(chosen, [])
    assert short is not None and repr(to_dict(short)) == repr(to_dict(merge.slow(chosen, [])))


@pytest.mark.parametrize(
    "content",
    [
        "# @package _global_\nseed: 7\n",
        "defaults:\n  - /training: transformer\n  - _self_\nimg_size: 7\n",
        "defaults:\n  - override /training: transformer\n  - _self_\nimg_size: 7\n",
        "defaults:\n  - baseline_aug\nimg_size: 7\n",
        "defaults:\n  - _self_\n  - baseline_aug\nimg_size: 7\n",
        "defaults:\n  - nothing\n  - _self_\n",
        "img_size: ${seed}\n",
        "img_size: ${data.cache_gb}\n",
        "img_size: '???'\n",
        "img_size: x\n",
        "img_sise: 7\n",
        "- img_size\n",
        "img_size: 1e3\ncache_gb: 1e3\n",
        "",
    ],
)
def test_an_option_with_more_of_hydras_words_is_composed_by_hydra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    shutil.copytree(keys_module.CONF_DIR, tmp_path / "conf")
    (tmp_path / "conf" / "data" / "mine.yaml").write_text(content)
    monkeypatch.setattr(merge, "CONF_DIR", tmp_path / "conf")
    monkeypatch.setattr(keys_module, "CONF_DIR", tmp_path / "conf")
    caches = (option_names, merge._composed, merge._option, merge._option_references, merge._section, merge._resolved)
    for cache in caches:
        cache.cache_clear()
    try:
        outcomes = [_outcome(way, value) for value in (None, 9) for way in (merge.merged, merge.slow)]
        monkeypatch.setattr(merge, "_from_files", lambda *chosen: None)
        merge._composed.cache_clear()
        assert outcomes == [_outcome(merge.slow, value) for value in (None, None, 9, 9)]
    finally:
        for cache in caches:
            cache.cache_clear()


def _outcome(way: Callable[[tuple[str, ...], list[Value]], Config], size: int | None) -> str:
    values = [] if size is None else [Value(f"data.img_size={size}", "data.img_size", size)]
    try:
        return repr(to_dict(way(("resnet50", "mine", ""), values)))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
