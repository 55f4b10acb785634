"""How the processes of one training find each other, by what has started them."""

import os
import subprocess
import sys

import pytest

from fmnist_keras3 import runtime
from fmnist_keras3.commands import launch
from fmnist_keras3.ground.errors import UserError

JOIN = """
from fmnist_keras3 import runtime
runtime.join_processes("auto", None, None)
import jax
from fmnist_keras3.engines.processes import Processes
world = Processes()
print("joined", world.rank, world.size, world.agree(10 + world.rank), len(jax.local_devices()))
runtime.leave_processes()
"""


def slurm(number, port):
    return {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_NODELIST": "localhost,other",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "JAX_COORDINATOR_PORT": str(port),
    }


def open_mpi(number, port):
    return {
        "OMPI_MCA_orte_hnp_uri": f"1531576320.0;tcp://127.0.0.1,10.0.0.1:{port}",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
        "JAX_COORDINATOR_PORT": str(port),
    }


def torchrun(number, port):
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "LOCAL_WORLD_SIZE": "2",
    }


@pytest.fixture
def nowhere(monkeypatch):
    """The environment of no job."""
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JAX_COORD", "JAX_LOCAL")):
            monkeypatch.delenv(name)
    for name in torchrun(0, 0):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("environment", [slurm, open_mpi, torchrun])
def test_processes_join_by_what_has_started_them(nowhere, environment):
    port = launch._free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "KERAS_BACKEND": "jax", **environment(number, port)},
        )
        for number in range(2)
    ]
    said = [process.communicate() for process in processes]
    for number, (out, errors) in enumerate(said):
        assert f"joined {number} 2 10 1" in out, errors


@pytest.fixture
def joined(nowhere):
    """What JAX is asked for, which is not done."""
    import jax
    from jax.experimental import multihost_utils

    asked = []
    nowhere.setattr(runtime, "choose_backend", lambda: "jax")
    nowhere.setattr(runtime, "prepare", lambda: "jax")
    nowhere.setattr(jax.config, "update", lambda name, value: None)
    nowhere.setattr(jax.distributed, "initialize", lambda *a, **k: asked.append((*a, k)))
    nowhere.setattr(multihost_utils, "sync_global_devices", lambda name: None)
    return asked


@pytest.mark.parametrize(
    ("environment", "address", "devices"),
    [
        (torchrun(1, 99), "127.0.0.1:99", [1]),
        ({**torchrun(1, 99), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "127.0.0.1:99", None),
        (slurm(1, 99), None, None),
        ({**slurm(1, 99), "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, None, []),
        ({**slurm(1, 99), "SLURM_STEP_TASKS_PER_NODE": "1(x2),2"}, None, None),
        ({**open_mpi(1, 99), "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, None, []),
        ({**open_mpi(1, 99), "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, None, None),
        ({**torchrun(1, 99), "JAX_LOCAL_DEVICE_IDS": "2,3"}, "127.0.0.1:99", None),
    ],
)
def test_a_process_sees_the_devices_that_are_its_own(
    joined, monkeypatch, environment, address, devices
):
    """None leaves it to JAX: the one of its number on the machine; an empty list is all."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    runtime.join_processes("auto", None, None)
    ((found, options),) = joined
    assert found == address
    assert options["local_device_ids"] == devices


def test_an_environment_of_no_job_is_refused(joined, monkeypatch):
    import jax

    def initialize(*arguments, **options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(UserError, match=r"no job of SLURM, Open MPI, Kubernetes \(.*jax\[k8s\]"):
        runtime.join_processes("auto", None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a:1", None, 0), "coordinator is given without num_processes. Type --num_processes N"),
        (("a:1", 2, None), "coordinator is given without process_id. Type --process_id N"),
        (("a:1", 2, 2), "process_id is 2; of 2 processes it must be at most 1."),
    ],
)
def test_half_of_an_address_is_refused(joined, given, message):
    with pytest.raises(UserError, match=message):
        runtime.join_processes(*given)
    assert joined == []
