"""What wandb measures of a machine, from every machine of a cluster, in the driver's own wandb run.

Owns an actor on each node that joins the run as a second writer (wandb's shared mode: processor, memory,
disk, network, GPUs, under the machine's name). Does not own the run, which the driver writes as its first
writer, nor any metric of training. A node joins only where wandb is logged in: no key is sent anywhere.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

MACHINE = "barnraise-machine"
INIT_S = 60.0


class Recorder:
    """The actor. `logged_in` is asked there; `label` is what the machine is called in wandb."""

    def __init__(self, run: str, project: str, label: str, logged_in: Callable[[], bool]) -> None:
        self._run, self._project, self._label = run, project, label
        self._logged_in = logged_in

    def begin(self) -> bool:
        """Join the run, for as long as this process lives; False where nobody is logged in."""
        if not self._logged_in():
            return False
        import wandb  # noqa: PLC0415 - only where it is used

        wandb.setup(settings=wandb.Settings(silent=True))
        wandb.init(
            project=self._project,
            id=self._run,
            mode="shared",
            dir=tempfile.mkdtemp(prefix="barnraise-wandb-"),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                init_timeout=INIT_S,
                x_label=self._label,
                x_primary=False,
                x_update_finish_state=False,
            ),
        )
        return True


class NodeRecorders:
    """A view of a run, as the sinks of pipeline/monitor.py are: at each turn it looks for nodes that are new.

    Nothing here waits for a node. The driver's own node is left out: its run measures it already.
    """

    def __init__(self, run: str, project: str, logged_in: Callable[[], bool]) -> None:
        self._options = (run, project)
        self._logged_in = logged_in
        self.actors: dict[str, Any] = {}

    def turn(self, row: Mapping[str, Any]) -> None:
        """A turn was closed."""
        del row
        # Not at the top: ray_pool.py says what of Ray's settings holds, before Ray is imported.
        import ray  # noqa: PLC0415
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        own = ray.get_runtime_context().get_node_id()
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        there = {node["NodeID"]: node for node in nodes if node["Alive"] and node["NodeID"] != own}
        for gone in set(self.actors) - set(there):
            del self.actors[gone]
        for name in set(there) - set(self.actors):
            node = there[name]
            label = (node.get("Labels") or {}).get(MACHINE) or node["NodeManagerHostname"]
            place = NodeAffinitySchedulingStrategy(name, soft=False)
            actor = ray.remote(Recorder).options(num_cpus=0, max_restarts=-1, scheduling_strategy=place)
            self.actors[name] = actor.remote(*self._options, label, self._logged_in)
            self.actors[name].begin.remote()

    def note(self, text: str) -> None:
        """Numbers only."""
        del text

    def close(self) -> None:
        """End the actors; they end with the driver as well."""
        import ray  # noqa: PLC0415

        if ray.is_initialized():
            for actor in self.actors.values():
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(actor)
        self.actors.clear()
