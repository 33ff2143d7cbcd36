"""The flags by which a process finds the other hosts; they are checked before JAX is imported, which takes seconds."""

import dataclasses
import re

from skipnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Joining:
    """Whether to join other hosts, and how.

    Args:
      distributed: yes, no, or auto = if a cluster has started several processes, or if any of the others is given.
      coordinator_address: host:port of process 0; None = ask the cluster.
      num_processes: number of hosts; None = ask the cluster.
      process_id: of this host, from 0; None = ask the cluster.
    """

    distributed: str = "auto"
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    @property
    def place(self) -> dict[str, str | int]:
        """The flags besides `distributed` that are given."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name != "distributed" and value is not None}

    def check(self) -> None:
        """Refuses flags that contradict each other.

        Raises:
          UserError: names the flag.
        """
        if self.distributed == "no" and self.place:
            field = next(iter(self.place))
            raise UserError(field, "a value with --distributed=no", "only one of the two", "Leave out either.")
        if self.coordinator_address is not None and not re.fullmatch(r".+:\d{1,5}", self.coordinator_address):
            raise UserError(
                "coordinator_address",
                repr(self.coordinator_address),
                "host:port of process 0",
                "Give a port that is free there, as in --coordinator_address=HOST0:1234.",
            )
        if self.num_processes is not None and (self.process_id or 0) >= self.num_processes:
            raise UserError(
                "process_id",
                f"{self.process_id}",
                f"0 to {self.num_processes - 1}, since --num_processes={self.num_processes}",
                "Change one of them.",
            )

    def join(self, *, workdir: str | None) -> bool:
        """Joins the other hosts, if the user or a cluster has started several, and returns whether it did.

        Raises:
          UserError: there is no cluster to ask, or it does not say how many processes it has started.
        """
        if self.distributed == "no":
            return False
        if self.distributed == "auto" and not self.place:
            from skipnet_jax.runs import clusters

            if clusters.count_processes() == 1:
                return False
        from skipnet_jax.runs import hosts

        hosts.join(self.coordinator_address, self.num_processes, self.process_id, workdir=workdir)
        return True
