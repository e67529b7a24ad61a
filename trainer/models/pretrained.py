"""Weights to start from: of timm's hub, of its cache, or of a local file."""

from __future__ import annotations

import os
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from trainer.base.errors import ConfigError
from trainer.config.schema import ModelConfig


def from_hub(config: ModelConfig, build: Callable[..., nn.Module]) -> nn.Module:
    """What timm's `build` makes with the weights of the hub: from its cache, else over the network. Raises ConfigError
    where timm has none, or where they are in neither place."""
    cfg = timm.get_pretrained_cfg(config.name)
    if cfg is None or not cfg.has_weights:
        raise ConfigError(
            f"model.pretrained=true: timm has no weights for {config.name}; "
            "give a file by model.weights=FILE, or start from scratch by model.pretrained=false"
        )
    _offline_if_unreachable()
    try:
        return build(pretrained=True, cache_dir=_cache(cfg.hf_hub_id))
    except ConfigError:
        raise
    except Exception as error:  # hub clients raise their own, the operating system's and several HTTP libraries' errors
        reason = " ".join(str(error).split()) or type(error).__name__
        place = cfg.hf_hub_id or cfg.url
        raise ConfigError(
            f"model.pretrained=true: the weights of {config.name} ({place}) are neither in the cache nor to be "
            f"had over the network ({reason[:160]}). Give a file by model.weights=FILE (.safetensors or a state dict), "
            "or start from scratch by model.pretrained=false"
        ) from None


def stored_file(name: str) -> Path | None:
    """<name>.safetensors where weights are kept: baked into an image, or put into the cache that runs share."""
    cache = os.environ.get("CACHE_DIR")
    folders = [os.environ.get("BAKED_WEIGHTS"), f"{cache}/weights" if cache else None]
    files = [Path(folder) / f"{name}.safetensors" for folder in folders if folder]
    return next((path for path in files if path.is_file()), None)


def _cache(hub_id: str | None) -> Path | None:
    """Where the hub's client keeps weights: baked into an image, in the cache that runs share, or (None) its own place,
    which a user may have set by HF_HOME."""
    baked = os.environ.get("BAKED_WEIGHTS")
    if baked and hub_id and (Path(baked) / f"models--{hub_id.replace('/', '--')}").is_dir():
        return Path(baked)
    cache = os.environ.get("CACHE_DIR")
    return Path(cache) / "weights" if cache and not {"HF_HOME", "HF_HUB_CACHE"} & set(os.environ) else None


def _offline_if_unreachable() -> None:
    """Where the hub's name does not resolve, look in the cache alone: its client would try again for a minute."""
    import huggingface_hub.constants as hub

    host = urllib.parse.urlsplit(hub.ENDPOINT).hostname
    if hub.HF_HUB_OFFLINE or not host or urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        hub.HF_HUB_OFFLINE = True


def load_file(model: nn.Module, path: Path) -> None:
    """Load a .safetensors file or a state dict into `model`, by way of timm's own filter for the architecture.

    A classifier of another size is left as initialised. Raises ConfigError that lists every other key that is missing,
    unexpected or of another shape: nothing is skipped in silence.
    """
    if not path.is_file():
        raise ConfigError(f"model.weights={path}: there is no such file")
    try:
        state: dict[str, torch.Tensor] = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes provoke
        raise ConfigError(
            f"model.weights={path}: not a .safetensors file or state dict that can be loaded safely: "
            f"{' '.join(str(error).split())[:160]}"
        ) from None
    state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)} if isinstance(state, dict) else {}
    wanted = model.state_dict()
    heads = _classifier_names(model)
    state = {
        k: v for k, v in state.items() if not (k.startswith(heads) and (k not in wanted or wanted[k].shape != v.shape))
    }
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is not None:
        try:
            state = adapt(state, model)
        except (KeyError, RuntimeError, ValueError, AssertionError, AttributeError) as error:
            raise ConfigError(f"model.weights={path}: not weights of this model: {_short(error)}") from None
    missing = sorted(k for k in wanted if k not in state and not k.startswith(heads))
    unexpected = sorted(k for k in state if k not in wanted)
    shapes = sorted(
        f"{k} {tuple(v.shape)} where the model has {tuple(wanted[k].shape)}"
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


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    cfg: Any = getattr(model, "pretrained_cfg", {})
    names = cfg.get("classifier", "")
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names) if name)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _listed(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f", … ({len(keys)} in all)" if len(keys) > 10 else ""
    return f"\n  {what}: {', '.join(keys[:10])}{more}"
