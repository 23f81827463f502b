"""The application without Ray, in one process, for any ASGI server:

STRATA_DATASET=s3://bucket/archive uvicorn --factory pipeline.serving.local:app
"""

import os

from fastapi import FastAPI

from .app import create_app
from .service import PreviewService, Settings


def app() -> FastAPI:
    """Serves the dataset at STRATA_DATASET, on the device STRATA_DEVICE (default: cpu)."""
    settings = Settings(os.environ["STRATA_DATASET"], device=os.environ.get("STRATA_DEVICE", "cpu"))
    return create_app(PreviewService.open(settings))
