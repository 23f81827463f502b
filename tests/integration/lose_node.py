"""A job on a Ray cluster whose only working machine goes away amid its work, and Ray gives it up.

A program of its own, because a process can be connected to one Ray only. It prints what became of
the job as JSON.
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import ray
from ray.cluster_utils import Cluster

from pipeline.compress.job import compress
from pipeline.running import actors
from tests.integration.corpus import Corpus
from tests.integration.faults import FaultProxy
from tests.integration.servers import S3Server

NOTICE_SECONDS = 120  # that Ray may take to find that a machine is gone
AWAY_SECONDS = 5  # in which there is no machine, after that


def main(endpoint: str, model: str, folder: str, name: str, temp: str) -> None:
    actors.WAITING_SECONDS = 3.0  # while the machine is away, people are told
    corpus = Corpus(S3Server("moto", endpoint), model, folder)
    machine = {"object_store_memory": 100 << 20}
    # The head has no CPU to offer: the worker is on the other machine, and then on its successor.
    head = {"num_cpus": 0, "temp_dir": temp, "include_dashboard": False, **machine}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    first = cluster.add_node(num_cpus=1, **machine)
    ray.init(address=cluster.address, logging_level="WARNING")
    wanted, lost, given_up = threading.Event(), threading.Event(), False

    def lose(path: str) -> None:
        wanted.set()
        lost.wait(120)

    try:
        with FaultProxy(endpoint) as proxy, ThreadPoolExecutor() as pool:
            proxy.call(lose, method="PUT", path="/data/x-1", when="middle", cut=True)
            job = pool.submit(compress, corpus.job(name, proxy.endpoint))
            if wanted.wait(120):  # Ray starts and ends machines only in the main thread
                cluster.remove_node(first, allow_graceful=False)
                lost.set()
                given_up = wait_until_given_up()
                time.sleep(AWAY_SECONDS)
                cluster.add_node(num_cpus=1, **machine)
            summary = job.result()
        facts = {"lost": lost.is_set(), "given_up": given_up}
        print(json.dumps(facts | {"exit_code": summary.exit_code, "ok": summary.ok}))
    finally:
        ray.shutdown()
        cluster.shutdown()


def wait_until_given_up() -> bool:
    """Whether Ray has found out that only the head is left."""
    deadline = time.monotonic() + NOTICE_SECONDS
    while time.monotonic() < deadline:
        if sum(node["Alive"] for node in ray.nodes()) == 1:
            return True
        time.sleep(0.2)
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
