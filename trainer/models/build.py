"""Models: any that timm knows, with weights from its hub, from a local file, or from scratch."""

from __future__ import annotations

import os
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.base.errors import ConfigError, nearest
from trainer.config.schema import ModelConfig, TrainingConfig


def check_name(name: str) -> None:
    """Raises ConfigError with the nearest name when timm has no such model."""
    if not timm.is_model(name):
        raise ConfigError(
            f"model.name={name}: timm {timm.__version__} has no such model; {nearest(name, timm.list_models())}"
        )


def mean_std(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The mean and standard deviation that the model was pretrained with, on the scale 0 to 1."""
    cfg = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    return tuple(cfg.mean), tuple(cfg.std)  # type: ignore[return-value]


def size_arguments(name: str, img_size: int) -> dict[str, Any]:
    """What timm must be told to build the model for images of `img_size` pixels: nothing where it takes any size."""
    cfg = timm.get_pretrained_cfg(name)
    return {"img_size": img_size} if cfg is not None and cfg.fixed_input_size else {}


def create(config: ModelConfig, classes: int, img_size: int, load_weights: bool = True) -> nn.Module:
    """The model with a classifier of `classes` outputs for square images of `img_size` pixels, on the CPU.

    Without `load_weights` its weights are random: the caller loads a checkpoint into it.

    Raises ConfigError: unknown model, a size that it cannot take, weights that are missing or do not fit.
    """
    check_name(config.name)
    sized = size_arguments(config.name, img_size)
    depth: dict[str, Any] = {} if config.drop_path is None else {"drop_path_rate": config.drop_path}
    no_depth = f"model.drop_path={config.drop_path}: {config.name} has no blocks that could be left out; leave it out"

    def build(**more: Any) -> nn.Module:
        try:
            built: nn.Module = timm.create_model(config.name, num_classes=classes, **sized, **depth, **more)
        except (AssertionError, ValueError, TypeError) as error:
            if "drop_path_rate" in str(error):
                raise ConfigError(no_depth) from None
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"model.name={config.name} cannot be built for data.img_size={img_size}: {reason}"
            ) from None
        if config.drop_path and not any("droppath" in type(m).__name__.lower() for m in built.modules()):
            raise ConfigError(no_depth)
        return built

    if not load_weights:
        return build()
    if config.weights:
        model = build()
        load_file(model, Path(config.weights).expanduser())
        return model
    if config.pretrained:
        stored = _stored_file(config.name)
        if stored is None:
            return _from_hub(config, build)
        model = build()
        load_file(model, stored)
        return model
    return build()


def restore(config: ModelConfig, classes: int, img_size: int, state_dict: dict[str, torch.Tensor]) -> nn.Module:
    """The model with a checkpoint's weights, on the CPU. Raises ConfigError where they do not fit it."""
    net = create(config, classes, img_size, load_weights=False)
    try:
        net.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ConfigError(
            f"the checkpoint's weights do not fit its model: {' '.join(str(error).split())[:200]}"
        ) from None
    return net


def _from_hub(config: ModelConfig, build: Callable[..., nn.Module]) -> nn.Module:
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


def _stored_file(name: str) -> Path | None:
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


class Normalized(nn.Module):
    """`model` behind the normalisation of uint8 images, so that images travel to the device as bytes."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], channels_last: bool) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, H, W) → float32 logits (N, classes)."""
        values = images.to(memory_format=self.memory_format).float().sub(self.mean).div(self.std)
        logits: torch.Tensor = self.model(values)
        return logits.float()


def checkpoint_gradients(model: nn.Module, name: str) -> None:
    """Have timm's model keep few activations and compute the others anew, block by block (Chen et al. 2016).

    Raises ConfigError where it cannot.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):
        raise ConfigError(f"training.grad_checkpointing=true: timm's {name} cannot do that; leave it out") from None


@contextmanager
def frozen_statistics(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Keep batch normalisation from counting a batch again when checkpointed blocks are computed a second time."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats] if enabled else []
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, batches in kept:
            norm.momentum, norm.num_batches_tracked = momentum, batches


def fused(training: TrainingConfig, precision: str) -> bool:
    """Whether the optimiser changes all weights in one kernel, which torch has for CUDA, MPS and CPUs.

    Not where fp16 and `training.gradient_clip` meet: it would divide by the loss scale after the clipping.
    """
    return not (precision == "fp16" and training.gradient_clip is not None)


def make_optimizer(training: TrainingConfig, net: nn.Module, precision: str = "fp32") -> torch.optim.Optimizer:
    """The configuration's optimiser; biases and normalisation layers have no weight decay, as timm has it.

    `precision` is bf16, fp16 or fp32. With `training.layer_decay` its groups have an `lr_scale`: their learning rate as
    a share of the configuration's. Raises ConfigError where timm knows no layers of the model.
    """
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # exported, but not in __all__

    bare = net.model if isinstance(net, Normalized) else net  # timm asks the model itself for its layers
    made = create_optimizer_v2(
        bare,
        opt={"adamw": "adamw", "sgd": "sgd"}[training.optimizer],
        lr=training.lr,
        weight_decay=training.weight_decay,
        momentum=0.9,
        layer_decay=training.layer_decay,
        fused=fused(training, precision),
    )
    if training.layer_decay is not None and len({group["lr_scale"] for group in made.param_groups}) == 1:
        raise ConfigError("training.layer_decay: timm knows no layers of this model; leave it out")
    return made
