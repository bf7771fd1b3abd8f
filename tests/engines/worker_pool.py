"""A worker pool on one address: `python -m tests.engines.worker_pool HOST:PORT`.

Beam's own (`apache_beam.runners.worker.worker_pool_main`) listens on every address of the machine. Here two machines
are played by two addresses of loopback, with the same port, as one address for all TaskManagers demands.
"""

from __future__ import annotations

import sys
import threading
from concurrent import futures

import grpc
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

if __name__ == "__main__":
    options = (("grpc.so_reuseport", 0), ("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0))
    server = grpc.server(futures.ThreadPoolExecutor(4), options=options)
    pool = BeamFnExternalWorkerPoolServicer(use_process=True, data_buffer_time_limit_ms=-1)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.add_insecure_port(sys.argv[1])
    server.start()
    threading.Event().wait()
