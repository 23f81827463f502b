"""The application in one process, without Ray, for any ASGI server:

STRATA_DATASET=s3://bucket/archive uvicorn --factory pipeline.serving.local:app
"""

import os

from fastapi import FastAPI

from .access import Access
from .app import create_app
from .service import PreviewService, Settings


def app() -> FastAPI:
    """Serves the archive at STRATA_DATASET, on the device STRATA_DEVICE (default: cpu).

    STRATA_HOST_NAMES (separated by spaces) and STRATA_TOKEN are the fields of ``Access``.
    """
    settings = Settings(os.environ["STRATA_DATASET"], device=os.environ.get("STRATA_DEVICE", "cpu"))
    names = tuple(os.environ.get("STRATA_HOST_NAMES", "").split())
    access = Access(names, os.environ.get("STRATA_TOKEN"))
    return create_app(PreviewService.open(settings), access=access)
