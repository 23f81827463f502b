"""The application on Ray Serve: as many replicas as there are devices, each a whole server.

A replica has its own model, caches and limits, and needs no other replica. ``serve run`` and a
RayService of KubeRay (infra/kuberay/service.yaml) start ``application``; ``strata serve``
does the same on a laptop or an existing cluster.
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

# A line for each request costs more than some requests, and what matters is in /metrics.
QUIET = {"log_level": "WARNING", "enable_access_log": False}
# Serve's own queue comes before ours, which knows what a request costs and says when to come back.
_EVERYTHING = 1000


def deploy(settings: Settings, replicas: int, cpus: float, gpus: float) -> serve.Application:
    """The application, for ``serve.run``. ``cpus`` and ``gpus`` are those of a replica."""

    def build() -> FastAPI:  # in the replica
        import torch

        from .replicas import SharedMetrics

        torch.set_num_threads(max(1, int(cpus)))
        service = PreviewService.open(settings)
        return create_app(service, SharedMetrics(service.metrics), settings.access)

    actor = {
        "num_cpus": cpus,  # which gives OMP_NUM_THREADS, too
        "num_gpus": gpus,
        "runtime_env": {"env_vars": KEEP_FREED_MEMORY},
    }
    deployment = serve.deployment(
        name=APPLICATION,
        num_replicas=replicas,
        max_ongoing_requests=_EVERYTHING,
        ray_actor_options=actor,
        graceful_shutdown_timeout_s=settings.limits.timeout,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config=QUIET,
    )(serve.ingress(build)())
    return deployment.bind()


def application(given: dict[str, Any]) -> serve.Application:
    """From the ``args`` of a Serve configuration.

    ``dataset`` (or the variable STRATA_DATASET) is its URL; ``device`` is ``cpu`` or ``cuda``,
    ``replicas``, ``cpus`` and ``gpus`` are numbers; ``limits`` has fields of ``Limits``;
    ``host_names`` are those of ``Access``. Its token (the variable STRATA_TOKEN) and storage
    options come from the environment, where secrets belong.
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
