"""The real preview server of a dataset, in a thread of the tests' process and without Ray."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from codec import Codec
from pipeline.reader.dataset import Dataset
from pipeline.serving.app import create_app
from pipeline.serving.limits import Limits
from pipeline.serving.service import PreviewService


@contextmanager
def previews(dataset: Dataset, codec: Codec, limits: Limits) -> Iterator[str]:
    """The address of a server on a free port of this machine."""
    app = create_app(PreviewService(dataset, codec, limits))
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the preview server did not start")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
