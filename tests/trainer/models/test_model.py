"""Models: names, local weights through timm's own filter, sizes, normalisation."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from trainer.base.errors import ConfigError
from trainer.config.compose import compose
from trainer.config.keys import option_names
from trainer.config.schema import ModelConfig
from trainer.models import build


def test_an_unknown_model_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"model\.name=resnet43: .* did you mean 'resnet\d+'"):
        build.create(ModelConfig("resnet43"), 3, 64)


def test_pretrained_without_network_or_cache_says_how_to_provide_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"(?s)not in the cache.*model\.weights=FILE.*model\.pretrained=false"):
        build.create(ModelConfig("resnet18"), 3, 64)


@pytest.mark.parametrize("layout", ["hub", "file"])
@pytest.mark.parametrize(("variable", "folder"), [("CACHE_DIR", "weights"), ("BAKED_WEIGHTS", ".")])
def test_pretrained_weights_are_found_in_a_cache_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, folder: str, layout: str
) -> None:
    """That of the runs, or one baked into an image; as the hub's client keeps them, or a file named by the model."""
    source = timm.create_model("test_resnet", num_classes=1000)
    if layout == "file":
        (tmp_path / folder).mkdir(exist_ok=True)
        save_file(source.state_dict(), tmp_path / folder / "test_resnet.safetensors")
    else:
        stored = tmp_path / folder / ("models--" + source.pretrained_cfg["hf_hub_id"].replace("/", "--"))
        (stored / "snapshots" / "abc").mkdir(parents=True)
        (stored / "refs").mkdir()
        (stored / "refs" / "main").write_text("abc")
        save_file(source.state_dict(), stored / "snapshots" / "abc" / "model.safetensors")
    for name in ("HF_HOME", "HF_HUB_CACHE", "CACHE_DIR", "BAKED_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    made = build.create(ModelConfig("test_resnet"), 3, 64)
    key = "layer1.0.conv1.weight"
    assert torch.equal(made.state_dict()[key], source.state_dict()[key])


@pytest.mark.parametrize("name", ["w.safetensors", "state_dict", "model_state_dict", "net"])
def test_local_weights_are_loaded_but_for_the_classifier(tmp_path: Path, name: str) -> None:
    """Also those beside an optimizer's state, as other trainers save them."""
    source = timm.create_model("test_resnet", num_classes=1000)
    path = tmp_path / (name if name.endswith(".safetensors") else "w.pth")
    if path.suffix == ".pth":
        optimizer = torch.optim.AdamW(source.parameters())
        sum(p.sum() for p in source.parameters()).backward()
        optimizer.step()
        weights = {f"module.{k}": v for k, v in source.state_dict().items()}
        torch.save({"epoch": 3, name: weights, "optimizer_state_dict": optimizer.state_dict()}, path)
    else:
        save_file(source.state_dict(), path)
    made = build.create(ModelConfig("test_resnet", weights=str(path)), 3, 64)
    for key, value in made.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(value, source.state_dict()[key])
    assert made.state_dict()["fc.weight"].shape[0] == 3


def test_deit_weights_at_another_size_get_resized_position_embeddings(tmp_path: Path) -> None:
    source = timm.create_model("deit_tiny_patch16_224", num_classes=1000)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    made = build.create(ModelConfig("deit_tiny_patch16_224", weights=str(tmp_path / "w.safetensors")), 3, 384)
    assert made.state_dict()["pos_embed"].shape[1] == 1 + 24 * 24
    assert torch.equal(made.state_dict()["blocks.0.attn.qkv.weight"], source.state_dict()["blocks.0.attn.qkv.weight"])
    assert made(torch.zeros(1, 3, 384, 384)).shape == (1, 3)


def test_weights_that_do_not_fit_are_an_error_that_lists_the_keys(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=1000).state_dict()
    gone = "layer1.0.conv1.weight"
    state.pop(gone)
    state["extra.weight"] = torch.zeros(1)
    state["bn1.weight"] = torch.zeros(7)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConfigError) as raised:
        build.create(ModelConfig("test_resnet", weights=str(tmp_path / "w.pth")), 3, 64)
    for part in (f"missing: {gone}", "unexpected: extra.weight", "of another shape: bn1.weight (7,)"):
        assert part in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_a_file_that_is_no_weights_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.weights=.*w\.pth: "):
        build.create(ModelConfig("test_resnet", weights=str(path)), 3, 64)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"state_dict": Trap()}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="loaded safely"):
        build.create(ModelConfig("test_resnet", weights=str(tmp_path / "w.pth")), 3, 64)
    assert not (tmp_path / "ran").exists()


def test_convolutions_that_read_few_channels_are_in_float32_where_nothing_is_trained() -> None:
    """The same numbers as without autocast, of the averaged copy too; in training and elsewhere as autocast does."""
    net = build.Normalized(timm.create_model("test_efficientnet", num_classes=3), (0.5,) * 3, (0.25,) * 3, False)
    copied = copy.deepcopy(net)
    with torch.no_grad():
        next(copied.parameters()).mul_(2)
    seen: dict[str, torch.dtype] = {}
    by_channels: dict[str, int] = {}
    first = [next(m for m in n.modules() if isinstance(m, torch.nn.Conv2d)) for n in (net, copied)]
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            by_channels[name] = module.in_channels // module.groups
            module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.dtype))
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    values = white.float().sub(net.mean).div(net.std)
    for training, gradients in ((False, False), (True, True), (True, False), (False, True)):
        net.train(training)
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradients):
            net(white.repeat(2, 1, 1, 1))
        few = {seen[name] for name, channels in by_channels.items() if channels <= build.FEW_CHANNELS}
        others = {seen[name] for name, channels in by_channels.items() if channels > build.FEW_CHANNELS}
        assert (few, others) == ({torch.bfloat16 if training or gradients else torch.float32}, {torch.bfloat16})
    for module in first:
        module.eval()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            mixed = module(values)
        assert torch.equal(mixed, module(values))
    assert not torch.equal(first[0](values), first[1](values)), "a copy computes with its own weights"


def test_the_models_own_mean_and_std_are_used() -> None:
    mean, std = build.mean_std("tf_efficientnet_lite0")
    assert (mean, std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert build.mean_std("resnet34")[0] == pytest.approx((0.485, 0.456, 0.406))
    net = build.Normalized(torch.nn.Identity(), mean, std, channels_last=False)
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert net(images)[0].unique().tolist() == [-1.0] and net(images)[1].unique().tolist() == [1.0]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["baseline_aug", "transformer_384"])
@pytest.mark.parametrize("name", option_names("model"))
def test_every_combination_takes_an_optimisation_step(tmp_path: Path, train, name: str, data: str) -> None:  # type: ignore[no-untyped-def]
    """At the manual's sizes: convnext at 512 on the Mac, else that of the data configuration; batch 2."""
    import json

    composed = compose([f"model={name}", f"data={data}"])
    sizes = [composed.data.img_size] + ([512] if (name, data) == ("convnext_base", "baseline_aug") else [])
    for size in sizes:
        words = [f"model={name}", f"data={data}", f"model.name={composed.model.name}", f"data.img_size={size}"]
        run = tmp_path / str(size)
        assert train(run, *words, "training.batch_size=2", "training.max_steps=1", "training.keep_top=1") == 0
        summary = json.loads((run / "metrics.json").read_text())
        assert (summary["steps"], summary["img_size"], summary["model_name"]) == (1, size, composed.model.name)
        for file in run.glob("*.ckpt"):
            file.unlink()
