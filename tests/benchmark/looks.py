"""CPU that Flower's own simulation takes to look for messages, for n clients.

python -m tests.benchmark.looks 100 300 1000

Ten times a second it asks for every node which message is to be delivered. Here all
have been, and are being answered, as in most of a round.
"""

import sys
import time


def seconds(n: int) -> float:
    """Time one look for n nodes, each with a message on its way."""
    # Flower's internals, of 1.41: only who times them needs to find them there.
    from flwr.app import Message, RecordDict
    from flwr.proto.task_pb2 import Task
    from flwr.server.superlink.fleet.vce import vce_api
    from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
    from flwr.supercore.constant import NOOP_FEDERATION_ID
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.superlink.grid.inmemory_grid import InMemoryGrid

    run = Run.create_empty(7)
    run.federation_id, run.primary_task_id = NOOP_FEDERATION_ID, 5
    factory = vce_api.LinkStateFactory(
        vce_api.FLWR_IN_MEMORY_DB_NAME,
        vce_api.NoOpFederationManager(),
        vce_api.ObjectStoreFactory(),
    )
    nodes = vce_api._register_nodes(n, factory)
    state = factory.state()
    state.run_ids[7], state.task_store[5] = RunRecord(run), Task(task_id=5, run_id=7)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 5
    grid = InMemoryGrid(state_factory=factory)
    grid.set_run(run)
    grid.push_messages(Message(RecordDict(), node, "train") for node in nodes)
    for expected in (1, 0):
        began = time.process_time()
        for node in nodes:
            assert len(state.get_message_ins(node_id=node, limit=1)) == expected
    return time.process_time() - began


if __name__ == "__main__":
    for number in map(int, sys.argv[1:]):
        print(f"{number} clients: {seconds(number):.3f} s of CPU")
