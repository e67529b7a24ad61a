"""How the heavy libraries are imported, and how a process that has imported them ends."""

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

from trainer.base.errors import EXIT_FAILED

UNUSED = ("wandb", "torchmetrics", "pandas")


@contextlib.contextmanager
def heavy() -> Iterator[None]:
    """Import what needs torch inside this block: without what torch's friends import and the trainer does not use, and
    with the collector of garbage off. Silences their remarks on their own working, which are no output of ours."""
    with without(*UNUSED), _collector_off():
        yield
    for name in ("lightning_fabric", "timm", "huggingface_hub", "httpx"):  # Fabric sets its own level on import
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
    """Let imports inside the block find none of `packages`; afterwards they can be imported as ever.

    timm imports wandb for a function that the trainer does not call, Fabric imports torchmetrics where it happens to be
    installed (scipy.signal and matplotlib with it) to compare its version, and scikit-learn imports pandas to know a
    table when it sees one: 4 s of CPU in each process. All three are made to work without.
    Python raises one for a name whose place in sys.modules holds None. This is the only place that does so.
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
    """No collection of garbage while a million objects are made that all stay: it is a fifth of the CPU time of the
    imports. Afterwards the collector leaves these objects alone, in the loader processes, too."""
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
    """End this process with exit code `code`, and do before all that Python does but one thing.

    With torch imported Python takes seconds to end, since it collects the garbage of a million objects, module by
    module. This joins the threads that Python joins, runs what libraries have registered for the end (W&B's upload,
    the loader processes, the process group of several GPUs, logging, temporary folders), flushes the output, and leaves
    the objects to the system.
    """
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # as Py_FinalizeEx does first
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # as where the caller has closed it
                stream.flush()
        except (OSError, ValueError):  # nobody reads any more, or there is no space
            code = code or EXIT_FAILED
    os._exit(code)
