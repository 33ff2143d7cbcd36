"""What each cluster tells by its variables or by a metadata server on loopback, and how long it takes without one."""

import http.server
import socket
import sys
import threading
import time

import pytest
from jax._src import cloud_tpu_init
from jax._src.clusters import cloud_tpu_cluster

from skipnet_jax import errors
from skipnet_jax.runs import clusters

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[001-004]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "3"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
METADATA = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "a:1:10.0.0.1,b:2:10.0.0.2,c:3:10.0.0.3,d:4:10.0.0.4",
    "tpu-env": "ZONE: 'here'",
}


@pytest.fixture(autouse=True)
def given(monkeypatch):
    """Gives variables to a process that has none of a cluster's."""
    for name in (
        *SLURM,
        *OPEN_MPI,
        *KUBERNETES,
        "JOB_COMPLETION_INDEX",
        "SLURM_STEP_NUM_TASKS",
        "TPU_WORKER_HOSTNAMES",
    ):
        monkeypatch.delenv(name, raising=False)

    def give(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return give


@pytest.fixture
def on_tpu(monkeypatch):
    """As on a machine with TPUs, where JAX asks the metadata server unless GKE has told all."""
    for module in (cloud_tpu_init, cloud_tpu_cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({}, 1),
        (SLURM, 4),
        (SLURM | {"SLURM_NTASKS": "1"}, 1),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, 1),  # a step of one task in an allocation of four
        (OPEN_MPI, 3),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, 1),
        (KUBERNETES, 1),  # a pod of no indexed job; JAX would warn
    ],
)
def test_a_cluster_tells_by_its_variables(given, variables, count):
    given(variables)
    assert clusters.count_processes() == count


def test_a_process_alone_is_told_at_once():
    began = time.monotonic()
    clusters.count_processes()
    assert time.monotonic() - began < 1


def test_gke_tells_by_its_variables(given, on_tpu):
    given({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2"})
    assert clusters.count_processes() == 4


@pytest.mark.filterwarnings("ignore:'maxsplit' is passed:DeprecationWarning")  # by JAX, on Python 3.13
def test_a_tpu_pod_tells_by_its_metadata_server(given, on_tpu):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            text = METADATA.get(self.path.rpartition("/")[2], "").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        given({"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"})
        assert clusters.count_processes() == 4
        server.shutdown()


@pytest.mark.parametrize("listening", [True, False])
def test_without_a_metadata_server_nobody_waits(given, on_tpu, monkeypatch, listening):
    """Neither where the connection is refused nor where nobody ever answers; JAX would wait for a minute."""
    monkeypatch.setattr(clusters, "METADATA_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listening:
            silent.listen()
        given({"GCE_METADATA_IP": f"127.0.0.1:{silent.getsockname()[1]}"})
        began = time.monotonic()
        assert clusters.count_processes() == 1
        assert time.monotonic() - began < 10


def test_a_cluster_that_cannot_be_asked_is_no_reason_to_train_alone(given, monkeypatch):
    given(KUBERNETES | {"JOB_COMPLETION_INDEX": "1"})
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(errors.UserError, match=r"got a job of K.*pip install 'jax\[k8s\]'.*--distributed=no"):
        clusters.count_processes()
    monkeypatch.undo()
    given(SLURM | {"SLURM_NTASKS": "many"})
    with pytest.raises(errors.UserError, match=r"got a job of Slurm that does not say .*invalid literal"):
        clusters.count_processes()
