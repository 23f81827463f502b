"""The application on Ray Serve, with several replicas.

Each replica is a whole server with its own model, caches and limits. ``strata serve`` calls
``deploy``; ``serve run`` and a RayService of KubeRay (infra/kuberay/service.yaml) start
``application``.
"""

import os
from typing import Any

from fastapi import FastAPI
from ray import serve

from ..running.cluster import KEEP_FREED_MEMORY
from .access import Access
from .app import create_app
from .limits import Limits
from .options import APPLICATION
from .service import PreviewService, Settings

# Writing a log line costs more than some requests; /metrics counts them.
QUIET = {"log_level": "WARNING", "enable_access_log": False}
# Above all of our own limits, so that Serve does not queue: our limits know the cost of a request
# and answer with Retry-After.
_ONGOING = 1000


def deploy(settings: Settings, replicas: int, cpus: float, gpus: float) -> serve.Application:
    """The application, for ``serve.run``. ``cpus`` and ``gpus`` are those of a replica."""

    def build() -> FastAPI:  # in the replica
        import torch

        from .replicas import SharedMetrics

        torch.set_num_threads(max(1, int(cpus)))
        service = PreviewService.open(settings)
        return create_app(service, SharedMetrics(service.metrics), settings.access)

    actor = {
        "num_cpus": cpus,  # Ray sets OMP_NUM_THREADS to it
        "num_gpus": gpus,
        "runtime_env": {"env_vars": KEEP_FREED_MEMORY},
    }
    deployment = serve.deployment(
        name=APPLICATION,
        num_replicas=replicas,
        max_ongoing_requests=_ONGOING,
        ray_actor_options=actor,
        graceful_shutdown_timeout_s=settings.limits.timeout,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config=QUIET,
    )(serve.ingress(build)())
    return deployment.bind()


def application(given: dict[str, Any]) -> serve.Application:
    """The application, from the ``args`` of a Serve configuration.

    ``dataset`` (or the variable STRATA_DATASET) is the archive's URL; ``device`` is ``cpu`` or
    ``cuda``; ``replicas``, ``cpus`` and ``gpus`` are numbers; ``limits`` has fields of ``Limits``;
    ``host_names`` are the ``hosts`` of ``Access``. Secrets come from the environment: the token
    from STRATA_TOKEN, and what the store needs.
    """
    device = given.get("device", "cpu")
    settings = Settings(
        dataset=given.get("dataset") or os.environ["STRATA_DATASET"],
        device=device,
        decoder=given.get("decoder"),
        limits=Limits(**given.get("limits", {})),
        access=Access(tuple(given.get("host_names", ())), os.environ.get("STRATA_TOKEN")),
    )
    gpus = float(given.get("gpus", device == "cuda"))
    return deploy(settings, int(given.get("replicas", 1)), float(given.get("cpus", 1)), gpus)
