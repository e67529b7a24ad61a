"""`python -m tests.timm_models` writes the stored list of timm's models again, after an update of timm."""

from __future__ import annotations

import json

from trainer.config.timm_models import FILE


def text() -> str:
    """The file's content for the installed timm."""
    import timm
    from timm.models import _registry as registry

    models = {}
    for model in sorted(registry._model_entrypoints):
        default = registry._model_default_cfgs.get(model)
        words = []
        for tag, cfg in default.cfgs.items() if default is not None else ():
            word = ("" if cfg.has_weights else "!") + (tag or "~")
            if cfg.hf_hub_id and cfg.hf_hub_id not in ("timm/", f"timm/{model}.{tag}"):
                word += f"@{cfg.hf_hub_id}"
            words.insert(0 if tag == default.tags[0] else len(words), word)  # type: ignore[union-attr]
        models[model] = " ".join(words)
    lines = ",\n".join(f"{json.dumps(model)}: {json.dumps(tags)}" for model, tags in models.items())
    return f'{{"timm": "{timm.__version__}", "models": {{\n{lines}\n}}}}\n'


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
