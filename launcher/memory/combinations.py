"""Which of the manual's combinations a machine can train: the predicted memory beside the manual's figures."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from launcher.base.errors import MachineError, SizeError
from launcher.base.sizes import GIB, parse_size, show_size
from launcher.host.machine import Gpu, Machine
from launcher.memory import compatibility, predict
from launcher.memory.fitting import budgets
from launcher.memory.predict import CONTEXT
from trainer.config.compose import compose
from trainer.config.keys import option_names

if TYPE_CHECKING:
    from rich.table import Table

BATCH = 16
"""Default batch of a combination that the manual does not list for the machine."""


def with_memory(machine: Machine, text: str) -> Machine:
    """The machine with this memory (`24g`) on each accelerator. A machine without accelerators gets a GPU. Raises
    MachineError."""
    try:
        size = parse_size(text)
    except SizeError as error:
        raise MachineError(f"--memory: {error}") from None
    if machine.mps and not machine.gpus:
        return dataclasses.replace(machine, memory=size)
    gpus = tuple(dataclasses.replace(gpu, name="GPU", memory=size) for gpu in machine.gpus)
    named = f"{machine.name} with {show_size(size)} on each GPU"
    return dataclasses.replace(machine, name=named, gpus=gpus or (Gpu(0, "GPU", size),), mps=False)


def rows(machine: Machine, environment: str) -> list[dict[str, Any]]:
    """One row for every model and image size. Batch and size are those of the manual's rows for the environment, else
    `BATCH` and the size of the data configuration. Memory is in bytes on one device; the smallest device decides.
    None means unknown.
    """
    device_budgets = budgets(machine)
    budget = min(device_budgets.values(), default=None)
    kind = "mps" if machine.mps and not machine.gpus else "cuda"
    precision = predict.precision_of("auto", kind)
    combinations = []
    for model in option_names("model"):
        for data in _one_of_each_size():
            config = compose([f"model={model}", f"data={data}"])
            manual = [r for r in compatibility.table(environment) if (r["model"], r["data"]) == (model, data)]
            for row in manual or [{"batch_size": BATCH, "img_size": config.data.img_size}]:
                key = (config.model.name, row["img_size"], precision, "adamw", kind)
                combinations.append(
                    {
                        "model": model,
                        "data": data,
                        "batch_size": row["batch_size"],
                        "img_size": row["img_size"],
                        "precision": precision,
                        **_predicted(key, row["batch_size"], budget),
                        "manual_memory_gb": row.get("memory_gb"),
                        "manual_status": row.get("status"),
                        "manual_hours": row.get("hours"),
                        "manual_f1_macro": row.get("f1_macro"),
                    }
                )
    return combinations


def _one_of_each_size() -> list[str]:
    """One data configuration of each image size: augmentation needs no device memory, so one per size is enough."""
    names = option_names("data")
    sizes = {compose([f"data={name}"]).data.img_size: name for name in reversed(names)}
    return sorted(sizes.values())


def _predicted(key: tuple[str, int, str, str, str], batch: int, budget: int | None) -> dict[str, Any]:
    need = predict.predict(*key)
    predicted: dict[str, Any] = dict.fromkeys(
        ("predicted_memory_bytes", "micro_batch", "predicted_at_micro_batch_bytes", "largest_img_size")
    )
    if need is None:
        return predicted
    predicted["predicted_memory_bytes"] = need.at(batch, accumulates=False) + CONTEXT
    if budget is not None:
        name, _, precision, optimizer, kind = key
        micro = predict.fitting_micro_batch(need, budget - CONTEXT, batch)
        predicted["micro_batch"] = micro
        predicted["largest_img_size"] = predict.largest_size(name, precision, optimizer, budget - CONTEXT, kind)
        if micro is not None:
            predicted["predicted_at_micro_batch_bytes"] = need.at(micro, micro < batch) + CONTEXT
    return predicted


def as_json(machine: Machine, environment: str) -> dict[str, Any]:
    """The stable form of `matrix --json`: `rows` is the manual's table, `combinations` the predictions."""
    return {
        "environment": environment,
        "note": compatibility.NOTE,
        "rows": compatibility.table(environment),
        "machine": machine.describe(),
        "usable_memory_bytes": budgets(machine),
        "context_bytes": CONTEXT,
        "combinations": rows(machine, environment),
    }


def remarks(machine: Machine, environment: str) -> list[str]:
    """Notes that explain the figures."""
    device_budgets = budgets(machine)
    usable = ", ".join(f"{show_size(size)} on {_device(device)}" for device, size in device_budgets.items())
    lines = (
        [f"a run may use {usable}"]
        if usable
        else ["the memory of the accelerator is unknown; give --memory 24g or --machine"]
    )
    if "mps" in device_budgets:
        lines[0] += f": the part of {show_size(machine.memory)} that Metal allows a process (not verified)"
    lines.append(
        f"needs: predicted by tracing one step, plus {show_size(CONTEXT)} for the CUDA context and workspaces "
        "(three of the models were measured, on an H100). The effective batch stays the same at any micro-batch"
    )
    return [*lines, f"the manual's columns are those of {environment}. {compatibility.NOTE}"]


def _device(name: str) -> str:
    return f"GPU {name}" if name.isdigit() else name.upper()


def render(machine: Machine, environment: str) -> Table:
    """The combinations as a table for a terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "data", "batch", "size", "", "needs", "micro-batch", "needs then", "manual says", "status",
                  "time", "F1 expected"):  # fmt: skip
        left = title in ("model", "data", "", "status")
        table.add_column(title, justify="left" if left else "right", overflow="fold")
    for row in rows(machine, environment):
        then, largest = row["predicted_at_micro_batch_bytes"], row["largest_img_size"]
        misfit = (f"✗ ({largest} px fits)" if largest else "✗") if budgets(machine) else ""
        gb, f1 = row["manual_memory_gb"], row["manual_f1_macro"]
        table.add_row(
            row["model"],
            row["data"],
            str(row["batch_size"]),
            str(row["img_size"]),
            row["precision"],
            _gib(row["predicted_memory_bytes"]),
            str(row["micro_batch"] or misfit),
            _gib(then),
            f"~{gb} GB" if gb else "",
            row["manual_status"] or "",
            "–".join(map(str, row["manual_hours"])) + " h" if row["manual_hours"] else "",
            "–".join(f"{value:.3g}" for value in dict.fromkeys(f1)) if f1 else "",
        )
    return table


def _gib(size: int | None) -> str:
    return f"{size / GIB:.1f} GiB" if size is not None else ""
