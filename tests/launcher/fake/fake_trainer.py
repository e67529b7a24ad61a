"""Behaves as the contract says a trainer does, in milliseconds.

$FAKE_PLAN: run name → what it does; $FAKE_LOG: a journal; $FAKE_CHECK: what check-data answers.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

if sys.argv[1] == "check-data":  # no test of the fake trainer has images
    print(os.environ.get("FAKE_CHECK", ""))
    sys.exit(65 if "FAKE_CHECK" in os.environ else 0)
LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # how torch.save began once: the shortest checkpoint
run_dir = Path(os.environ["RUN_DIR"])
plans = json.loads(os.environ.get("FAKE_PLAN", "{}"))
plan = {**plans.get("*", {}), **plans.get(run_dir.name.partition("-")[2], {})}


def note(what: str) -> None:
    names = (
        "CUDA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
        "NVIDIA_VISIBLE_DEVICES",
        "HOME",
        "UNASKED",
        "OMP_NUM_THREADS",
        "DATA_DIR",
        "SECRETS_DIR",
        "DEVICE_MEMORY_LIMIT",
        "TOKEN",
    )
    line = {"run": run_dir.name, "what": what, "time": time.monotonic(), "pid": os.getpid(), "argv": sys.argv[1:]}
    line["env"] = {name: os.environ[name] for name in names if name in os.environ}
    line["secrets"] = {}
    for path in Path(os.environ["SECRETS_DIR"]).glob("*") if "SECRETS_DIR" in os.environ else ():
        line["secrets"][path.name] = [path.read_text(), oct(path.stat().st_mode & 0o777)]
    for path in Path("/sys/class/net").glob("*"):
        line.setdefault("interfaces", []).append(path.name)
    line["uid"], line["gid"] = os.getuid(), os.getgid()
    with Path(os.environ.get("FAKE_LOG") or run_dir / "journal").open("a") as log:
        log.write(json.dumps(line) + "\n")


def stop(number: int, frame: object) -> None:
    if plan.get("stubborn"):
        return
    time.sleep(plan.get("saving", 0))
    (run_dir / "last.ckpt").write_text("state")
    note("stopped")
    sys.exit(143)


def overwrite(name: str) -> str:
    """Try all ways to change a file of the run directory; what the system says to the last."""
    said = "changed"
    for way in (
        lambda: (run_dir / name).write_text("{}"),
        lambda: (run_dir / name).unlink(),
        lambda: (run_dir / name).rename(run_dir / "moved"),
    ):
        try:
            way()
            return "changed"
        except OSError as error:
            said = os.strerror(error.errno)
    return said


def leave(kind: str) -> None:
    """Start a process that outlives this one: `deaf` to SIGTERM, in a session of its own (`setsid`), with init for a
    parent (`double`), with all descriptors closed (`closed`), without the variables (`bare`)."""
    read, write = os.pipe()
    if "bare" in kind:
        code = "import os, time; os.write(1, b'%d' % os.getpid()); os.close(1); time.sleep(300)"
        os.posix_spawn(sys.executable, [sys.executable, "-c", code], {}, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
    elif os.fork() == 0:
        if "setsid" in kind:
            os.setsid()
        if "double" in kind and os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in kind else signal.SIG_DFL)
        os.write(write, b"%d" % os.getpid())
        if "closed" in kind:
            os.closerange(0, 256)
        os.close(write) if "closed" not in kind else None
        time.sleep(300)
        os._exit(0)
    os.close(write)
    note("left " + os.read(read, 20).decode())
    os.close(read)


def exchange(names: list[str], victim: str) -> None:
    """Exchange these names with links to the victim, as fast as possible, until this container ends; every temporary
    file becomes such a link, too."""
    import ctypes

    library = ctypes.CDLL(None)
    os.chdir(run_dir)
    Path("evil").mkdir()
    for name in names:
        Path("evil", name).symlink_to(victim)
        Path(name).touch()
    while True:
        for name in names * 20:
            library.renameat2(-100, name.encode(), -100, f"evil/{name}".encode(), 2)  # AT_FDCWD, RENAME_EXCHANGE
        for entry in os.scandir("."):
            if entry.name.startswith("."):
                try:
                    Path(entry.name).unlink()
                    Path(entry.name).symlink_to(victim)
                except OSError:
                    pass


signal.signal(signal.SIGTERM, stop)
note("begin")
if not (run_dir / "attempts").exists():
    for kind in plan.get("children", []):
        leave(kind)
    note("all left") if plan.get("children") else None
if "overwrite" in plan:
    (run_dir / "overwritten.json").write_text(json.dumps({name: overwrite(name) for name in plan["overwrite"]}))
for name, target in plan.get("links", {}).items():
    (run_dir / name).unlink(missing_ok=True)
    (run_dir / name).symlink_to(target)
if "exchange" in plan and os.fork() == 0:
    exchange(*plan["exchange"])
print("working", flush=True)
ballast = bytearray(plan.get("megabytes", 0) * 2**20)
deadline = time.monotonic() + plan.get("seconds", 0.05)
while time.monotonic() < deadline or (plan.get("until") and not Path(plan["until"]).exists()):
    time.sleep(0.01)
if plan.get("probe"):
    tried = {}
    for folder in plan["probe"]:
        try:
            (Path(folder) / "probe").write_text("x")
            tried[folder] = "written"
        except OSError as error:
            tried[folder] = os.strerror(error.errno)
    script = Path("/tmp/script")
    script.write_text("#!/bin/sh\necho ran")
    script.chmod(0o755)
    tried["exec in /tmp"] = os.access(script, os.X_OK) and os.spawnv(os.P_WAIT, str(script), [str(script)]) == 0
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=3)
    except OSError as error:
        tried["network"] = type(error).__name__ + ": " + str(error)
    words = Path("/proc/self/status").read_text().split("\n")
    tried |= {
        line.split(":")[0]: line.split(":")[1].strip() for line in words if line.startswith(("Cap", "NoNewPrivs"))
    }
    (run_dir / "probe.json").write_text(json.dumps(tried))
if "print" in plan:
    print(plan["print"], file=sys.stderr, flush=True)
if plan.get("signal"):
    signal.signal(plan["signal"], signal.SIG_DFL) if plan["signal"] != signal.SIGKILL else None
    os.kill(os.getpid(), plan["signal"])
code = plan.get("exit", 0)
began = run_dir / "attempts"  # of this run, so far
with began.open("a") as file:
    file.write("x")
if began.stat().st_size <= plan.get("bad_attempts", 0):
    print("error: a bad day", file=sys.stderr, flush=True)
    code = plan.get("bad_exit", 3)
micro = next((int(w.partition("=")[2]) for w in sys.argv if w.startswith("training.micro_batch=")), 16)
if micro > plan.get("largest_micro_batch", micro):
    print(f"error: out of device memory at micro-batch {micro}", file=sys.stderr, flush=True)
    code = 75
if code == 0 and not plan.get("idle"):
    metrics = {
        "val_f1": plan.get("f1", 0.5),
        "val_accuracy": 0.5,
        "seconds": 1.0,
        "split_fingerprint": "s",
        "epochs": 1,
    }
    if sys.argv[1] == "train":
        (run_dir / "best.ckpt").write_bytes(LEGACY + run_dir.name.encode())
    if sys.argv[1] == "ensemble":
        members = [word for word in sys.argv if word.endswith("best.ckpt")]
        metrics |= {"members": [{"checkpoint": m} for m in members], "method": "soft_voting"}
        (run_dir / "ensemble.json").write_text("{}")
    if sys.argv[1] == "predict":
        (run_dir / "submission.csv").write_text("ID,target\n")
    if sys.argv[1] == "analyze":
        (run_dir / "analysis_results").mkdir(exist_ok=True)
        (run_dir / "analysis_results" / "report.html").write_text("<html>")
    (run_dir / "metrics.json").write_text(json.dumps(metrics))
    for name, target in plan.get("last_links", {}).items():
        (run_dir / name).unlink(missing_ok=True)
        (run_dir / name).symlink_to(target)
for name, text in plan.get("leaves", {}).items():  # None: nothing
    (run_dir / name).unlink(missing_ok=True) if text is None else (run_dir / name).write_text(text)
note("end")
sys.exit(code)
