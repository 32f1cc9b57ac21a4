"""Machines (nodes) that run the same script keep step. Standard library only.

    python scripts/nodes.py open PORT STEP NEEDED NODES    node 0: begin STEP with nodes 1 .. NEEDED - 1
    python scripts/nodes.py stop PORT NODES                node 0: tell the others that it has failed
    python scripts/nodes.py ask HOST:PORT STEP NODE NODES  another node: may I begin STEP?

Node 0 alone decides which steps are run and does alone what is not parallel. The others ask it before each
parallel step, for as long as it takes; it listens only while it opens a step, and answers

    go     all nodes that the step needs are there (exit status 0)
    skip   that step is behind node 0: done before, or done without you (exit status 3)
    wait   (they ask again)
    stop   node 0 has failed, or this node is ahead of it or started with other NODES (exit status 1)

A question is one line, "STEP NODE NODES"; steps are numbered in the order of the script.
"""

import argparse
import logging
import socket
import sys
import time

log = logging.getLogger(__name__)

ASK_EVERY = 0.5  # seconds
PRESENT = 10.0  # seconds for which a node that has asked counts as there
SAY_AFTER = 5.0  # seconds of waiting after which that is said
GO, STOP, SKIP = 0, 1, 3


class Gate:
    """What node 0 knows of the others while it opens one step."""

    def __init__(self, step: int, needed: int, nodes: int):
        self.step, self.nodes = step, nodes
        self.others = range(1, needed)
        self.asked = {}  # node -> when it last asked for this step
        self.told = set()  # nodes that may go

    def answer(self, step: int, node: int, nodes: int, now: float) -> str:
        if nodes != self.nodes or not 0 < node < nodes:
            return "stop"
        if step < self.step:
            return "skip"
        if node not in self.others:
            return "wait"
        if step > self.step:
            return "stop"
        self.asked[node] = now
        if not self.told and self.missing(now):
            return "wait"  # all together: whoever goes first waits in torchrun, which is not as patient
        self.told.add(node)
        return "go"

    def missing(self, now: float) -> list[int]:
        return [node for node in self.others if now - self.asked.get(node, -PRESENT) >= PRESENT]

    def is_open(self) -> bool:
        return self.told.issuperset(self.others)


def serve(port: int, answer, is_over, patience: float | None, on_wait) -> bool:
    """Answer questions until ``is_over()``, or for ``patience`` seconds; whether it was over."""
    begun, said = time.monotonic(), False
    with listen(port) as server:
        server.settimeout(0.2)
        while not is_over():
            waited = time.monotonic() - begun
            if patience is not None and waited > patience:
                return False
            if waited > SAY_AFTER and not said:
                said = True
                on_wait()
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                try:
                    connection.settimeout(5)
                    line = connection.makefile().readline(100)
                    step, node, nodes = map(int, line.split())
                    connection.sendall(f"{answer(step, node, nodes, time.monotonic())}\n".encode())
                except (OSError, ValueError):
                    continue  # not one of ours, or gone
    return True


def listen(port: int) -> socket.socket:
    """Node 0's port, on all its addresses."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def ask(host: str, port: int, step: int, node: int, nodes: int) -> str:
    """Node 0's answer, without "wait"; asks for as long as it takes."""
    begun, said = time.monotonic(), False
    while True:
        try:
            with socket.create_connection((host, port), timeout=10) as connection:
                connection.sendall(f"{step} {node} {nodes}\n".encode())
                answer = connection.makefile().readline(100).strip()
        except OSError:
            answer = "wait"  # it is busy with another step, or not started
        if answer in ("go", "skip", "stop"):
            return answer
        if time.monotonic() - begun > SAY_AFTER and not said:
            said = True
            log.info("waiting for node 0 at %s, port %d", host, port)
        time.sleep(ASK_EVERY)


def open_step(port: int, step: int, needed: int, nodes: int, patience: float | None) -> int:
    gate = Gate(step, needed, nodes)

    def on_wait():
        names = ", ".join(map(str, gate.missing(time.monotonic())))
        log.info("waiting for node %s at port %d", names, port)

    serve(port, gate.answer, gate.is_open, patience, on_wait)
    return GO


def tell_to_stop(port: int, nodes: int, patience: float) -> int:
    told = set()

    def answer(step, node, nodes, now):
        told.add(node)
        return "stop"

    serve(port, answer, lambda: told.issuperset(range(1, nodes)), patience, lambda: None)
    return GO


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("open", "stop", "ask"))
    parser.add_argument("where", metavar="PORT|HOST:PORT")
    parser.add_argument("numbers", type=int, nargs="+")
    parser.add_argument("--patience", type=float, help="seconds after which node 0 waits no longer")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    host, _, port = options.where.rpartition(":")
    try:
        if options.what == "open":
            return open_step(int(port), *options.numbers, options.patience)
        if options.what == "stop":
            return tell_to_stop(int(port), *options.numbers, options.patience)
        answer = ask(host, int(port), *options.numbers)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        log.error("error: port %s: %s; give MASTER another port", port, error.strerror)
        return STOP
    if answer == "stop":
        log.error(
            "error: node 0 has failed or was started anew, or has other NODES; see what it says, then start "
            "the same line on all nodes"
        )
    return {"go": GO, "skip": SKIP, "stop": STOP}[answer]


if __name__ == "__main__":
    sys.exit(main())
