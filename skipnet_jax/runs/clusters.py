"""Finds out how many processes of this program a cluster has started, and never waits where there is no cluster.

JAX knows the clusters: TPU pods (by the metadata server of Google's machines, or by GKE's variables), Slurm, Open MPI
and Kubernetes. It asks them only while joining, when a process that is alone would wait for others. So this module
asks them beforehand.
"""

import contextlib
import http.client
import importlib.util
import os
import threading

from jax._src import cloud_tpu_init, clusters  # JAX has no public way to ask without joining

from skipnet_jax.errors import UserError

METADATA_SECONDS = 5.0  # for the metadata server, which answers within milliseconds where there is one


def count_processes() -> int:
    """The number of processes that were started together with this one, itself included; 1 = alone.

    Raises:
      UserError: a cluster does not say how many processes it has started.
    """
    for cluster in clusters.ClusterEnv._cluster_types:
        if cluster.opt_in_only_method or not _may_be(cluster):
            continue
        try:
            if cluster.is_env_present():
                return int(cluster.get_process_count())
        except Exception as error:  # the cluster's own client library may raise any type
            raise _unknown(_name(cluster), f"{type(error).__name__}: {error}".splitlines()[0]) from error
    return 1


def _may_be(cluster: type[clusters.ClusterEnv]) -> bool:
    """Whether the cluster is worth asking. These checks cost little, and JAX's own question may take minutes."""
    name = _name(cluster)
    if name == "Slurm":
        # A step with one task is alone, even in an allocation of several tasks; JAX looks at the allocation.
        return os.environ.get("SLURM_STEP_NUM_TASKS") != "1"
    if name == "GceTpu":
        return cloud_tpu_init.running_in_cloud_tpu_vm and _has_metadata_server()
    if name == "K8s":
        if not {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys():
            return False  # a pod outside an indexed job, such as a notebook's
        if importlib.util.find_spec("kubernetes") is None:
            raise _unknown("Kubernetes", "its Python package is not installed: pip install 'jax[k8s]'")
    return True


def _name(cluster: type[clusters.ClusterEnv]) -> str:
    return cluster.__name__.removesuffix("Cluster")


def _unknown(cluster: str, why: str) -> UserError:
    return UserError(
        "distributed",
        f"a job of {cluster} that does not say how many processes it has ({why})",
        "one that does",
        "Give `coordinator_address`, `num_processes` and `process_id` on each host, or --distributed=no for this one "
        "alone.",
    )


def _has_metadata_server() -> bool:
    """Whether Google's metadata server answers. Where it does not, JAX would try for minutes."""
    if "TPU_SKIP_MDS_QUERY" in os.environ:
        return False
    found: list[bool] = []

    def connect() -> None:
        host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")  # JAX reads the same variable
        connection = http.client.HTTPConnection(host, timeout=METADATA_SECONDS)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/", headers={"Metadata-Flavor": "Google"})
            connection.getresponse()
            found.append(True)

    connecting = threading.Thread(target=connect, daemon=True)  # looking up a name has no time limit of its own
    connecting.start()
    connecting.join(METADATA_SECONDS)
    return bool(found)
