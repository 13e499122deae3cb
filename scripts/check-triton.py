"""What tritonclient sees of a cluster that serves the preset `tiny`: check-triton.py HOST:PORT. Any layer's rows must be those that
its routing, given back, gives; types differ by no more than their rounding."""

import queue
import sys

import ml_dtypes
import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException, shared_memory

HIDDEN, LAYERS, TOP_K = 256, 2, 2
client = grpc.InferenceServerClient(sys.argv[1])


def ok(what, holds=True):
    if not holds:
        sys.exit(f"not as it should be: {what}")
    print(f"ok  {what}")


def given(name, values, datatype):
    tensor = grpc.InferInput(name, values.shape, datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def infer(model, inputs, outputs=("hidden_states",)):
    asked = [grpc.InferRequestedOutput(name) for name in outputs]
    return client.infer(model, inputs, outputs=asked)


def refused(what, status, text, call):
    try:
        call()
    except InferenceServerException as error:
        ok(f"{what}: {error.status()}", status in error.status() and text in error.message())
    else:
        sys.exit(f"{what} was taken")


def describe():
    ok("live and ready", client.is_server_live() and client.is_server_ready())
    metadata = client.get_server_metadata()
    ok(f"server metadata: {metadata.name} {metadata.version}", metadata.name == "switchyard")
    names = [model.name for model in client.get_model_repository_index().models]
    ok(f"index: {', '.join(names)}", names[0] == "tiny" and "tiny.moe.1" in names)
    for name in names:
        model = client.get_model_metadata(name)
        config = client.get_model_config(name).config
        same = [tensor.name for tensor in model.outputs] == [tensor.name for tensor in config.output]
        ok(f"metadata and config of {name}", client.is_model_ready(name) and same and list(model.inputs[0].shape) == [-1, HIDDEN])


def types(rows):
    wide = infer("tiny", [given("hidden_states", rows, "FP32")]).as_numpy("hidden_states")
    ok("FP32: rows of the layers", wide.shape == rows.shape and np.isfinite(wide).all() and not np.array_equal(wide, rows))
    narrow = infer("tiny", [given("hidden_states", rows.astype(ml_dtypes.bfloat16), "BF16")])
    ok("BF16: the same", np.array_equal(narrow.as_numpy("hidden_states").astype(np.float32), wide))
    half = infer("tiny", [given("hidden_states", rows.astype(np.float16), "FP16")])
    error = np.linalg.norm(half.as_numpy("hidden_states").astype(np.float32) - wide) / np.linalg.norm(wide)
    ok(f"FP16: the same but for its rounding, {error:.1e}", half.get_output("hidden_states").datatype == "FP16" and error < 1e-2)
    batch = infer("tiny", [given("hidden_states", rows.reshape(4, -1, HIDDEN), "FP32")]).as_numpy("hidden_states")
    ok("[batch, tokens, hidden]", np.array_equal(batch.reshape(rows.shape), wide))
    step = rows
    for layer in range(LAYERS):
        step = infer(f"tiny.layer.{layer}", [given("hidden_states", step, "FP32")]).as_numpy("hidden_states")
    ok("one layer after the other: the same", np.array_equal(step, wide))
    return wide


def routing(rows, wide):
    names = ("hidden_states", "topk_ids", "topk_weights")
    for model, tail, dtype in (("tiny", (LAYERS, TOP_K), "FP32"), ("tiny.moe.0", (TOP_K,), "FP32")):
        chosen = infer(model, [given("hidden_states", rows, dtype)], names)
        ids, weights = chosen.as_numpy("topk_ids"), chosen.as_numpy("topk_weights")
        right = ids.shape == (len(rows), *tail) and ids.dtype == np.int32 and np.allclose(weights.sum(-1), 1, atol=1e-5)
        inputs = [given("hidden_states", rows, dtype), given("topk_ids", ids, "INT32"), given("topk_weights", weights, "FP32")]
        again = infer(model, inputs).as_numpy("hidden_states")
        ok(f"routing of {model}, given back: the same", right and np.array_equal(again, chosen.as_numpy("hidden_states")))
        doubled = [*inputs[:2], given("topk_weights", 2 * weights, "FP32")]
        twice = infer(model, doubled).as_numpy("hidden_states")
        ok(f"routing of {model}, with other weights: other rows", not np.array_equal(twice, again))


def memory(rows, wide):
    client.unregister_system_shared_memory()
    handle = shared_memory.create_shared_memory_region("both", "/switchyard-check-triton", 2 * rows.nbytes)
    try:
        shared_memory.set_shared_memory_region(handle, [rows])
        client.register_system_shared_memory("both", "/switchyard-check-triton", 2 * rows.nbytes)
        status = client.get_system_shared_memory_status().regions["both"]
        ok("shared memory: registered", status.byte_size == 2 * rows.nbytes)
        source = grpc.InferInput("hidden_states", rows.shape, "FP32")
        source.set_shared_memory("both", rows.nbytes)
        target = grpc.InferRequestedOutput("hidden_states")
        target.set_shared_memory("both", rows.nbytes, rows.nbytes)
        client.infer("tiny", [source], outputs=[target])
        written = shared_memory.get_contents_as_numpy(handle, np.float32, rows.shape, rows.nbytes)
        ok("shared memory: rows from it and to it", np.array_equal(written, wide))
        source.set_shared_memory("both", rows.nbytes, rows.nbytes + 1)
        refused("shared memory, beyond its end", "INVALID_ARGUMENT", "of region", lambda: client.infer("tiny", [source]))
        refused(
            "shared memory, longer than the segment",
            "INVALID_ARGUMENT",
            "offset + byte_size",
            lambda: client.register_system_shared_memory("long", "/switchyard-check-triton", 3 * rows.nbytes),
        )
        client.unregister_system_shared_memory("both")
        ok("shared memory: unregistered", len(client.get_system_shared_memory_status().regions) == 0)
    finally:
        shared_memory.destroy_shared_memory_region(handle)


def stream(rows):
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for index in range(20):
        client.async_stream_infer("tiny.moe.1", [given("hidden_states", rows[: index + 1], "FP32")], request_id=str(index))
    client.async_stream_infer("nobody", [given("hidden_states", rows, "FP32")], request_id="wrong")
    client.async_stream_infer("tiny.moe.1", [given("hidden_states", rows, "FP32")], request_id="last")
    got = [answers.get(timeout=60) for _ in range(22)]
    client.stop_stream()
    whole = infer("tiny.moe.1", [given("hidden_states", rows, "FP32")]).as_numpy("hidden_states")
    right = all(
        error is None and result.get_response().id == str(index) and np.array_equal(result.as_numpy("hidden_states"), whole[: index + 1])
        for index, (result, error) in enumerate(got[:20])
    )
    ok("a stream: 20 requests in order, each the same as by itself", right)
    ok("a stream: a wrong one ends alone", "NOT_FOUND" in str(got[20][1]) and got[21][1] is None)


def wrong(rows):
    good = given("hidden_states", rows, "FP32")
    refused("an unknown model", "NOT_FOUND", "allowed: tiny,", lambda: infer("nobody", [good]))
    refused("an unknown layer", "NOT_FOUND", "tiny.layer.9", lambda: infer("tiny.layer.9", [good]))
    refused("an unknown version", "NOT_FOUND", "model version", lambda: client.infer("tiny", [good], model_version="7"))
    refused("an unknown input", "INVALID_ARGUMENT", "inputs[0].name", lambda: infer("tiny", [given("x", rows, "FP32")]))
    refused("an unknown output", "INVALID_ARGUMENT", "outputs[0].name", lambda: infer("tiny", [good], ["y"]))
    refused("a wrong width", "INVALID_ARGUMENT", "shape of hidden_states", lambda: infer("tiny", [given("hidden_states", rows[:, :9], "FP32")]))
    whole = rows.astype(np.int32)
    refused("a wrong type", "INVALID_ARGUMENT", "allowed: BF16, FP16, FP32", lambda: infer("tiny", [given("hidden_states", whole, "INT32")]))
    refused("no input", "INVALID_ARGUMENT", "allowed: hidden_states", lambda: infer("tiny", []))
    refused("a deadline of 1 us", "DEADLINE_EXCEEDED", "", lambda: client.infer("tiny", [good] , client_timeout=1e-6))


def statistics():
    stats = client.get_inference_statistics("tiny").model_stats[0]
    ok(f"statistics: {stats.inference_count} requests", stats.inference_count > 3 and stats.inference_stats.compute_infer.ns > 0)


random = np.random.default_rng(1).standard_normal((64, HIDDEN), np.float32)
# Rows that are BF16 are the same in every type.
tokens = random.astype(ml_dtypes.bfloat16).astype(np.float32)
describe()
expected = types(tokens)
routing(tokens, expected)
memory(tokens, expected)
stream(tokens)
wrong(tokens)
statistics()
