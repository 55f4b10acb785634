"""What must happen before a backend is imported: which one, its flags, caches and devices.

Nothing here runs at import. `prepare` sets environment variables only, keeps what the user has
set (but for a flag that would end the process), and may be called any number of times.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from fmnist_keras3.ground.errors import UserError, nearest

BACKENDS = ("jax", "tensorflow")

# jaxlib 0.10 sums wrongly under jit on CPUs (jax-ml/jax#39103); an empty list of fusion types is
# the cure, and makes convolutions two to three times faster. XLA ends the process at a flag that
# it does not know, so it is set for the versions that are known to have it only. Of the two
# libraries, the backend's counts: the other reads the flags at its first compilation, which tf.data
# beside JAX never comes to.
_FUSION_FLAG = "--xla_cpu_experimental_ynn_fusion_type="
_FUSION_FLAG_KNOWN = {"jax": ("jaxlib", "0.10."), "tensorflow": ("tensorflow", "2.21.")}

JOIN_SECONDS = 120  # for the last of many processes to be there
HEARTBEAT_SECONDS = 20  # after which the others take a silent process for dead
LEAVE_SECONDS = 5  # in which those that meet the same error end, before the first of them does
LOST = re.compile(r"\b(Gloo|NCCL)\b|distributed service|coordination service", re.IGNORECASE)

_STARTED = time.perf_counter() - time.thread_time()  # of this program; see process_seconds

_DRIVER_TALK = re.compile(
    r"absl::InitializeLog|cudart_stub|cuda_platform|cuInit|computation_placer|port\.cc|"
    r"cpu_feature_guard|TF_ENABLE_ONEDNN_OPTS|rebuild TensorFlow|TF-TRT"
)


def version(package: str) -> str | None:
    """Return the installed version of ``package``, or None, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cache_dir() -> Path:
    """Return the folder for what can be made again: downloads, compiled programs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fmnist-keras3"


def choose_backend() -> str:
    """Return the backend: `KERAS_BACKEND`, else Keras' own configuration, else jax.

    Raises UserError for a backend that is unknown, not supported, or not installed.
    """
    if "keras" in sys.modules:
        name = sys.modules["keras"].backend.backend()
        return _check_backend(name, "Keras was imported with")
    if name := os.environ.get("KERAS_BACKEND"):
        return _check_backend(name, "KERAS_BACKEND is")
    config = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
    try:
        name = json.loads(config.read_text()).get("backend", "jax")
    except (OSError, ValueError, AttributeError):
        name = "jax"
    return _check_backend(name, f"{config} names")


def _check_backend(name: str, where: str) -> str:
    if name not in BACKENDS:
        missing = name == "torch" and importlib.util.find_spec("torch") is None
        reason = " PyTorch is not installed, and no engine for it is here yet." if missing else ""
        raise UserError(
            f"{where} {name!r}, which cannot train here.{reason}{nearest(name, BACKENDS)} "
            f"Backends: {', '.join(BACKENDS)}. Type KERAS_BACKEND=jax fmnist ..."
        )
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"{where} {name!r}, but the package {name} is not installed. "
            f"Type: pip install {name} (or choose another with KERAS_BACKEND={_other(name)})."
        )
    return name


def _other(name: str) -> str:
    return next(backend for backend in BACKENDS if backend != name)


def prepare() -> str:
    """Set what the backend must find in the environment before it starts; returns its name."""
    backend = choose_backend()
    os.environ["KERAS_BACKEND"] = backend
    flags = os.environ.get("XLA_FLAGS", "")
    if not _knows_fusion_flag(backend):
        # Perhaps from a process of another backend that started this one.
        flags = " ".join(flag for flag in flags.split() if flag != _FUSION_FLAG)
    elif "xla_cpu_experimental_ynn_fusion_type" not in flags:
        flags = f"{flags} {_FUSION_FLAG}".strip()
    if flags != os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = flags
    # Without a GPU, TensorFlow reports the missing driver as an error, at level 2.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if has_gpu_driver() else "3")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if backend == "tensorflow":
        _import_tensorflow()
    return backend


def _import_tensorflow():
    """Import TensorFlow without what it says on the way about drivers that are not there.

    These lines come before TF_CPP_MIN_LOG_LEVEL is obeyed. All else that goes to stderr meanwhile
    is passed on.
    """
    if "tensorflow" in sys.modules or "TF_CPP_VMODULE" in os.environ:
        return importlib.import_module("tensorflow")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            return importlib.import_module("tensorflow")
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said.read().decode(errors="replace").splitlines():
                if not _DRIVER_TALK.search(line):
                    print(line, file=sys.stderr)


def _knows_fusion_flag(backend: str) -> bool:
    package, known = _FUSION_FLAG_KNOWN[backend]
    return (version(package) or "").startswith(known)


def check_joint(asked: str) -> None:
    """Raise UserError for what was ``asked`` unless processes of the backend train together."""
    if choose_backend() != "jax":
        raise UserError(
            f"{asked} is for KERAS_BACKEND=jax: on TensorFlow one process trains alone. Type "
            "KERAS_BACKEND=jax before the command."
        )


def check_coordinator(address: str) -> None:
    """Raise UserError unless ``address`` is HOST:PORT or auto."""
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(
            f"coordinator is {address!r}; it must be HOST:PORT of the first process, or auto. "
            "Type --coordinator 10.0.0.1:12321 --num_processes 4 --process_id 0"
        )


def rank() -> int:
    """Return which of the processes that train together this one is, from 0."""
    jax = sys.modules.get("jax")
    return jax.process_index() if jax is not None and jax.distributed.is_initialized() else 0


def join_processes(address: str | None, count: int | None, number: int | None) -> None:
    """Join the other processes of this training, before JAX computes anything.

    ``address`` is None for a process alone, HOST:PORT of the first of ``count`` processes, or
    "auto" for what SLURM, Open MPI, Kubernetes or torchrun have put into the environment. Raises
    UserError where that is not enough, or the others do not come.
    """
    if address is None:
        return
    check_joint("coordinator")
    prepare()
    environment = os.environ
    if address == "auto" and {"MASTER_ADDR", "RANK", "WORLD_SIZE"} <= environment.keys():
        port = environment.get("MASTER_PORT", "12321")
        address = f"{environment['MASTER_ADDR']}:{port}"
        count, number = int(environment["WORLD_SIZE"]), int(environment["RANK"])
    if address != "auto" and (count is None or number is None):
        missing = "num_processes" if count is None else "process_id"
        raise UserError(f"coordinator is given without {missing}. Type --{missing} N, too.")
    if count is not None and number is not None and number >= count:
        raise UserError(
            f"process_id is {number}; of {count} processes it must be at most {count - 1}."
        )
    import jax

    if jax.distributed.is_initialized():
        return
    own = _own_devices()
    # Signals are ours: JAX's own service would take SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            None if address == "auto" else address,
            num_processes=count,
            process_id=number,
            local_device_ids=own,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        if address == "auto" and "be defined" in str(error):
            raise UserError(
                "coordinator is auto, but the environment is that of no job of SLURM, Open MPI, "
                "Kubernetes (for which JAX needs: pip install 'jax[k8s]') or torchrun. Type "
                "--coordinator HOST:PORT --num_processes N --process_id I"
            ) from error
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The processes did not come together at {address} within {JOIN_SECONDS} s: {reason}. "
            "Give each the same --coordinator and --num_processes, and its own --process_id."
        ) from error
    from jax.experimental import multihost_utils

    # At the first exchange Gloo greets its peers on the stdout of the system.
    sys.stdout.flush()
    with open(os.devnull, "w") as nowhere:
        stdout = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            multihost_utils.sync_global_devices("fmnist")
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)


def _own_devices() -> list[int] | None:
    """Return which GPUs of its machine this process is to see: an empty list for all.

    None leaves it to JAX, which gives a process of SLURM or Open MPI the one of its number on the
    machine, also where it is the only one there.
    """
    environment = os.environ
    if "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    if int(environment.get("LOCAL_WORLD_SIZE", "1")) > 1:  # of torchrun
        return [int(environment["LOCAL_RANK"])]
    on_nodes = environment.get("SLURM_STEP_TASKS_PER_NODE", "")  # "1(x3)": on each of three one
    alone = re.fullmatch(r"1(\(x\d+\))?", on_nodes) is not None
    return [] if alone or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" else None


def leave_processes() -> None:
    """Wait for the other processes, if there are any, so that none takes this one for dead."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        jax.distributed.shutdown()


def end_one_of_many(code: int, lost: bool) -> None:
    """End this process, one of many that train together, at once, after an error.

    At an end of the usual kind JAX would wait for the others, which wait for this one. One that
    has ``lost`` another lets JAX say which one it was, as it ends the process in C++.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if lost:
        time.sleep(HEARTBEAT_SECONDS + LEAVE_SECONDS)
    elif rank() == 0:
        time.sleep(LEAVE_SECONDS)  # the end of the coordinator is that of all
    os._exit(code)


def has_gpu_driver() -> bool:
    """Tell whether the machine shows an NVIDIA driver."""
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists()


def import_tensorflow_for_data():
    """Import TensorFlow for tf.data and TFDS, without the GPU when another backend trains on it."""
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            "The streaming pipeline and TFDS need tensorflow, which is not installed. "
            "Type: pip install tensorflow (or use --pipeline resident)."
        )
    prepare()
    tf = _import_tensorflow()
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        # TensorFlow would take the whole GPU at its first op, also for tf.data alone.
        tf.config.set_visible_devices([], "GPU")
    return tf


def import_keras_alone() -> None:
    """Import Keras without scikit-learn and Matplotlib: half of what its import takes.

    Keras tries them for its scikit-learn wrappers and picture galleries, which then say that they
    are missing. For processes of our own commands, which use neither; both import as ever later.
    Nothing happens where Keras is imported already, as on TensorFlow, which brings it along.
    """
    if "keras" in sys.modules:
        return
    hidden = [name for name in ("sklearn", "matplotlib") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        importlib.import_module("keras")
    finally:
        for name in hidden:
            del sys.modules[name]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    packages = ("fmnist-keras3", "keras", "jax", "jaxlib", "tensorflow", "numpy")
    found = {package: version(package) for package in packages}
    return {"python": sys.version.split()[0], **{p: v for p, v in found.items() if v}}


def hardware() -> dict[str, object]:
    """Return processor name, usable cores and memory (GiB) of this machine."""
    import platform

    import psutil

    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        name = next(line for line in lines if line.startswith("model name"))
        processor = name.split(":", 1)[1].strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {"processor": processor, "cores": cores, "memory_gib": memory}


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process in MB (10^6 bytes)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(OSError, IndexError):
        # Linux begins ru_maxrss with that of the process which started this one.
        peak = int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0])
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def process_seconds() -> float:
    """Return the seconds since this program was started.

    Until this module was imported, what the thread worked counts: the start of the process may be
    that of a shell that became this program (exec) after an hour of other things.
    """
    return time.perf_counter() - _STARTED
