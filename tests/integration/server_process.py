"""One S3 server in a process of its own; it prints its port, and ends when its input closes.

``servers.py`` starts it as ``python -m tests.integration.server_process moto|swift FOLDER``. That
it ends with its standard input means that it also ends when the tests are killed.
"""

import functools
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE = 100  # names in one answer to a listing; 1,000 would make tests of paging slow
SWIFT_ACCOUNT, SWIFT_USER, SWIFT_SECRET = "strata", "tester", "testing"

# Swift checks the signatures of S3 requests (tempauth's users), unlike moto. `bulk` and `slo` are
# what its S3 side needs for deleting many objects and for multipart uploads. There is no memcached:
# what Swift would cache it asks its own account and container servers, in this same process.
_SWIFT_PROXY = f"""
[DEFAULT]
swift_dir = {{folder}}
log_level = ERROR
[pipeline:main]
pipeline = catch_errors s3api tempauth bulk slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
node_timeout = 30
conn_timeout = 5
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:s3api]
use = egg:swift#s3api
max_bucket_listing = {PAGE}
[filter:tempauth]
use = egg:swift#tempauth
user_{SWIFT_ACCOUNT}_{SWIFT_USER} = {SWIFT_SECRET} .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
"""
_SWIFT_STORAGE = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
fallocate_reserve = 0
disable_fallocate = true
log_level = ERROR
[pipeline:main]
pipeline = {server}-server
[app:{server}-server]
use = egg:swift#{server}
"""


def serve_moto(folder: Path, announce: Callable[[int], None]) -> None:
    os.environ["MOTO_S3_DEFAULT_MAX_KEYS"] = str(PAGE)
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    # moto looks whether an object is there, then writes it: two requests at once could both win
    writing = threading.Lock()
    for name in ("put_object", "_key_response_post"):
        setattr(S3Response, name, _one_at_a_time(getattr(S3Response, name), writing))

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    announce(server.get_host_and_port()[1])
    threading.Event().wait()


def _one_at_a_time(method: Callable[..., Any], lock: threading.Lock) -> Callable[..., Any]:
    @functools.wraps(method)
    def alone(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return method(*args, **kwargs)

    return alone


def serve_swift(folder: Path, announce: Callable[[int], None]) -> None:
    """Proxy, account, container and object server as green threads, on rings of one folder."""
    from swift.common import utils
    from swift.common.ring import RingData
    from swift.common.wsgi import SwiftHttpProtocol, loadapp

    utils.monkey_patch()
    import eventlet
    import eventlet.wsgi

    # Without a secret in its hashes Swift refuses to start; here it keeps nothing from anyone.
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = strata\n")
    utils.set_swift_dir(str(folder))
    (folder / "devices" / "disk").mkdir(parents=True)
    sockets = {}
    for server in ("account", "container", "object", "proxy"):
        listening = eventlet.listen(("127.0.0.1", 0), backlog=128)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[server] = listening
        template = _SWIFT_PROXY if server == "proxy" else _SWIFT_STORAGE
        (folder / f"{server}.conf").write_text(template.format(folder=folder, server=server))
        if server != "proxy":
            port = listening.getsockname()[1]
            device = {"id": 0, "zone": 0, "region": 1, "weight": 1.0, "device": "disk"}
            address = {"ip": "127.0.0.1", "port": port}
            replication = {"replication_ip": "127.0.0.1", "replication_port": port}
            ring = RingData([[0, 0]], [device | address | replication], part_shift=31)
            ring.save(str(folder / f"{server}.ring.gz"))
    for server, listening in sockets.items():
        eventlet.spawn(
            eventlet.wsgi.server,
            listening,
            loadapp(str(folder / f"{server}.conf"), {"log_name": server}),
            logging.getLogger("quiet"),
            protocol=SwiftHttpProtocol,
            capitalize_response_headers=False,  # S3 clients look for "ETag", not "Etag"
        )
    announce(sockets["proxy"].getsockname()[1])
    while True:
        eventlet.sleep(3600)


def _end_with_input() -> None:
    """End the process when whoever started it closes the pipe, or is gone."""
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    # before eventlet patches threads: this one must wait in the operating system
    threading.Thread(target=_end_with_input, daemon=True).start()
    serve = {"moto": serve_moto, "swift": serve_swift}[sys.argv[1]]
    serve(Path(sys.argv[2]), lambda port: print(port, flush=True))
