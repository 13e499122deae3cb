"""A cluster as tritonclient sees it: infer.py HOST:PORT MODEL"""

import queue
import sys

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import shared_memory

address, model = sys.argv[1:]
client = grpc.InferenceServerClient(address)
print("models:", *[found.name for found in client.get_model_repository_index().models])
hidden = client.get_model_metadata(model).inputs[0].shape[-1]
rows = np.random.default_rng(1).standard_normal((32, hidden), np.float32)


def tensor(values):
    made = grpc.InferInput("hidden_states", values.shape, "FP32")
    made.set_data_from_numpy(values)
    return made


# One bare block, and which experts its tokens chose.
asked = [grpc.InferRequestedOutput(name) for name in ("hidden_states", "topk_ids", "topk_weights")]
answer = client.infer(f"{model}.moe.0", [tensor(rows)], outputs=asked)
print("rows:", answer.as_numpy("hidden_states").shape, "experts of the first token:", *answer.as_numpy("topk_ids")[0])

# All layers, with the rows in shared memory on both ways: nothing but names goes through gRPC.
handle = shared_memory.create_shared_memory_region("rows", "/switchyard-example", 2 * rows.nbytes)
try:
    shared_memory.set_shared_memory_region(handle, [rows])
    client.register_system_shared_memory("rows", "/switchyard-example", 2 * rows.nbytes)
    source = grpc.InferInput("hidden_states", rows.shape, "FP32")
    source.set_shared_memory("rows", rows.nbytes)
    target = grpc.InferRequestedOutput("hidden_states")
    target.set_shared_memory("rows", rows.nbytes, offset=rows.nbytes)
    client.infer(model, [source], outputs=[target])
    shared = shared_memory.get_contents_as_numpy(handle, np.float32, rows.shape, offset=rows.nbytes)
    copied = client.infer(model, [tensor(rows)]).as_numpy("hidden_states")
    print("shared memory and message give the same rows:", np.array_equal(shared, copied))
    client.unregister_system_shared_memory("rows")
finally:
    shared_memory.destroy_shared_memory_region(handle)

# A stream: many requests, answered in their order.
answers = queue.Queue()
client.start_stream(callback=lambda result, error: answers.put(error or result.get_response().id))
for number in range(8):
    client.async_stream_infer(f"{model}.layer.1", [tensor(rows)], request_id=str(number))
print("stream:", *[answers.get(timeout=60) for _ in range(8)])
client.stop_stream()
