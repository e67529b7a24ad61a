"""Import heavy libraries fast, and end a process with these libraries fast."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

from trainer.base.activity import doing
from trainer.base.errors import EXIT_FAILED

UNUSED = ("wandb", "torchmetrics", "pandas")


@contextlib.contextmanager
def heavy() -> Iterator[None]:
    """Import modules that need torch inside this block. It skips imports that the trainer does not use, turns the
    garbage collector off, and silences the log messages of the libraries."""
    importing = doing("importing torch") if "torch" not in sys.modules else contextlib.nullcontext()
    with importing, without(*UNUSED), _collector_off():
        yield
    for name in ("lightning_fabric", "timm", "huggingface_hub", "httpx"):  # Fabric sets its own level on import
        logging.getLogger(name).setLevel(logging.ERROR)
    if "torch" in sys.modules:
        from trainer.training.device import limit_threads

        limit_threads()


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
    """Make imports of `packages` fail inside the block. After the block they work again.

    timm imports wandb for a function that the trainer does not call. Fabric imports torchmetrics (with scipy.signal and
    matplotlib) if it is installed, to compare its version. scikit-learn imports pandas to recognise its tables.
    Together they take 4 s of CPU time in each process. All three libraries also work without them.
    Python raises ImportError for a name with None in sys.modules. Only this function uses that.
    """
    hidden = [name for name in packages if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """Turn the garbage collector off during imports, which create a million permanent objects. The collector takes a
    fifth of the CPU time of the imports. It also ignores these objects later, in the loader processes too."""
    first, was_on = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        if was_on:
            gc.enable()


def end(code: int) -> NoReturn:
    """End this process with exit code `code`, like Python but without the final garbage collection.

    With torch imported Python needs seconds to end, because it collects a million objects, module by module. This
    function joins threads, runs the exit functions of libraries (W&B's upload, loader processes, the process group of
    several GPUs, logging, temporary folders) and flushes the output. The operating system frees the objects.
    """
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # as Py_FinalizeEx does first
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # the caller may have closed it
                stream.flush()
        except (OSError, ValueError):  # closed pipe or full disk
            code = code or EXIT_FAILED
    os._exit(code)
