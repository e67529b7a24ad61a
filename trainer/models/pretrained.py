"""Pretrained weights from timm's hub, from its cache, or from a local file."""

from __future__ import annotations

import os
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from trainer.base.brief import in_brief
from trainer.base.errors import ConfigError
from trainer.config.schema import ModelConfig


def from_hub(config: ModelConfig, build: Callable[..., nn.Module]) -> nn.Module:
    """The model of timm's `build` with weights from the hub cache, or from the network. Raises ConfigError if timm has
    no weights for it, or if both places fail."""
    cfg = timm.get_pretrained_cfg(config.name)
    if cfg is None or not cfg.has_weights:
        raise ConfigError(
            f"model.pretrained=true: timm has no weights for {config.name}; "
            "give a file with model.weights=FILE, or train from scratch with model.pretrained=false"
        )
    _offline_if_unreachable()
    try:
        return build(pretrained=True, cache_dir=_cache(cfg.hf_hub_id))
    except ConfigError:
        raise
    except Exception as error:  # hub clients raise their own errors, system errors and errors of HTTP libraries
        reason = str(error).strip() or type(error).__name__
        place = cfg.hf_hub_id or cfg.url
        raise ConfigError(
            f"model.pretrained=true: the weights of {config.name} ({place}) are not in the cache, and the download "
            f"failed ({in_brief(reason, 160)}). Give a file with model.weights=FILE (.safetensors or a state dict), or "
            "train from scratch with model.pretrained=false"
        ) from None


def stored_file(name: str) -> Path | None:
    """The path of <name>.safetensors: in the image, or in the shared cache."""
    cache = os.environ.get("CACHE_DIR")
    folders = [os.environ.get("BAKED_WEIGHTS"), f"{cache}/weights" if cache else None]
    files = [Path(folder) / f"{name}.safetensors" for folder in folders if folder]
    return next((path for path in files if path.is_file()), None)


def _cache(hub_id: str | None) -> Path | None:
    """The folder of the hub client's weights: in the image, in the shared cache, or None for its default, which a user
    can set with HF_HOME."""
    baked = os.environ.get("BAKED_WEIGHTS")
    if baked and hub_id and (Path(baked) / f"models--{hub_id.replace('/', '--')}").is_dir():
        return Path(baked)
    cache = os.environ.get("CACHE_DIR")
    return Path(cache) / "weights" if cache and not {"HF_HOME", "HF_HUB_CACHE"} & set(os.environ) else None


def _offline_if_unreachable() -> None:
    """If the hub's host name does not resolve, use only the cache. Otherwise the client would retry for a minute."""
    import huggingface_hub.constants as hub

    host = urllib.parse.urlsplit(hub.ENDPOINT).hostname
    if hub.HF_HUB_OFFLINE or not host or urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        hub.HF_HUB_OFFLINE = True


def load_file(model: nn.Module, path: Path) -> None:
    """Load a .safetensors file or a state dict into `model`, with timm's filter for the architecture.

    A classifier of another size keeps its initial weights. Raises ConfigError with all other keys that are missing,
    unexpected or of another shape. The function never skips a key silently.
    """
    if not path.is_file():
        raise ConfigError(f"model.weights={path}: file not found")
    try:
        state: dict[str, torch.Tensor] = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes provoke
        raise ConfigError(
            f"model.weights={path}: not a .safetensors file or state dict that can be loaded safely: "
            f"{in_brief(str(error), 160)}"
        ) from None
    state = _tensors(state)
    wanted = model.state_dict()
    heads = classifier_names(getattr(model, "pretrained_cfg", None))
    state = _unwrapped(state, [key for key in wanted if not key.startswith(heads)])
    state = {
        k: v for k, v in state.items() if not (k.startswith(heads) and (k not in wanted or wanted[k].shape != v.shape))
    }
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is not None:
        try:
            state = adapt(state, model)
        except (KeyError, RuntimeError, ValueError, AssertionError, AttributeError) as error:
            raise ConfigError(f"model.weights={path}: not the weights of this model: {_short(error)}") from None
    missing = sorted(k for k in wanted if k not in state and not k.startswith(heads))
    unexpected = sorted(k for k in state if k not in wanted)
    shapes = sorted(
        f"{k} {tuple(v.shape)}, but the model has {tuple(wanted[k].shape)}"
        for k, v in state.items()
        if k in wanted and wanted[k].shape != v.shape
    )
    if missing or unexpected or shapes:
        raise ConfigError(
            f"model.weights={path}: does not fit the model:"
            + _listed("missing", missing)
            + _listed("unexpected", unexpected)
            + _listed("of another shape", shapes)
        )
    model.load_state_dict(state, strict=False)


def prefix_of(state: Collection[str], wanted: Collection[str]) -> str | None:
    """The shortest text before the names of all `wanted` tensors in `state`. None if there is none."""
    some = max(wanted, key=len)
    prefixes = sorted({key[: -len(some)] for key in state if key.endswith(some)}, key=len)
    return next((prefix for prefix in prefixes if all(f"{prefix}{key}" in state for key in wanted)), None)


def _tensors(content: Any) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, or of the one inside a file that has more than weights: `model_state_dict` beside an
    optimizer's state, or the only one, whatever its name."""
    if not isinstance(content, dict):
        return {}
    own = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if own:
        return own
    inner = {key: part for key, value in content.items() if isinstance(value, dict) and (part := _tensors(value))}
    usual = [inner[name] for name in ("model_state_dict", "state_dict", "model") if name in inner]
    others = [part for key, part in inner.items() if not str(key).startswith(("optim", "sched"))]
    return usual[0] if usual else others[0] if len(others) == 1 else {}


def _unwrapped(state: dict[str, torch.Tensor], wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """The tensors of the model alone, if it is inside another module, as in a checkpoint of Lightning."""
    prefix = prefix_of(state, wanted)
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)} if prefix else state


def classifier_names(cfg: Any) -> tuple[str, ...]:
    """How the names of the classifier's tensors begin, from timm's configuration of the model."""
    names = (cfg.classifier if isinstance(cfg, timm.models.PretrainedCfg) else (cfg or {}).get("classifier")) or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names) if name)


def _short(error: BaseException) -> str:
    return in_brief(str(error), 160) or type(error).__name__


def _listed(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f", … ({len(keys)} in all)" if len(keys) > 10 else ""
    return f"\n  {what}: {', '.join(keys[:10])}{more}"
