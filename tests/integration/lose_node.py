"""A job on a Ray cluster whose only working machine goes away amid its work, for over a minute.

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

from pipeline.compress import compress
from tests.integration.corpus import Corpus
from tests.integration.faults import FaultProxy
from tests.integration.servers import S3Server

AWAY_SECONDS = 65  # longer than Ray's own patience with a machine


def main(endpoint: str, folder: str, name: str, temp: str) -> None:
    corpus = Corpus(S3Server("moto", endpoint), folder)
    machine = {"object_store_memory": 100 << 20}
    # The head has no CPU to offer: the worker is on the other machine, and then on its successor.
    head = {"num_cpus": 0, "temp_dir": temp, "include_dashboard": False, **machine}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    first = cluster.add_node(num_cpus=1, **machine)
    ray.init(address=cluster.address, logging_level="WARNING")
    wanted, lost = threading.Event(), threading.Event()

    def lose(path: str) -> None:
        wanted.set()
        lost.wait(60)

    try:
        with FaultProxy(endpoint) as proxy, ThreadPoolExecutor() as pool:
            proxy.call(lose, method="PUT", path="/data/x-1", when="middle", cut=True)
            job = pool.submit(compress, corpus.job(name, proxy.endpoint))
            if wanted.wait(60):  # Ray starts and ends machines only in the main thread
                cluster.remove_node(first, allow_graceful=False)
                lost.set()
                time.sleep(AWAY_SECONDS)
                cluster.add_node(num_cpus=1, **machine)
            summary = job.result()
        facts = {"lost": lost.is_set(), "exit_code": summary.exit_code, "ok": summary.ok}
        print(json.dumps(facts))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
