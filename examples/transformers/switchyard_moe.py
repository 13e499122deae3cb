"""MoE blocks of a Hugging Face model, computed by a switchyard cluster.

    cluster = Cluster("127.0.0.1:7070")
    replace_moe(model, cluster)
    model.generate(...)

Rows go as BF16 over one session, a gRPC stream that stays open: docs/PROTOCOL.md tells its messages. Needs grpcio and grpcio-tools,
which read the definitions in proto/.
"""

import queue
import sys
import threading
from pathlib import Path

import grpc
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "proto"))
protos, services = grpc.protos_and_services("switchyard/v1/client.proto")

# Of one batch of a session.
TOKENS_MAX = 1024
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Batch:
    """Rows under way, and what answers them."""

    def __init__(self, rows):
        self.output = torch.empty_like(rows)
        self.error = None
        self.done = threading.Event()

    def result(self):
        self.done.wait()
        if self.error is not None:
            raise self.error
        return self.output


class Cluster:
    """A session with a router. Threads may share it: many batches may be under way at once."""

    def __init__(self, address, token=None):
        self.channel = grpc.insecure_channel(address, UNLIMITED)
        metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        self.requests = queue.SimpleQueue()
        self.batches = {}
        self.error = None
        self.lock = threading.Lock()
        self.number = 0
        self.requests.put(protos.SessionRequest(hello=protos.SessionHello()))
        stub = services.InferenceStub(self.channel)
        self.answers = stub.Session(iter(self.requests.get, None), metadata=metadata)
        # A cluster that cannot be reached says so here.
        next(self.answers)
        threading.Thread(target=self.receive, daemon=True).start()

    def block(self, layer, rows, token_ids=None):
        """MoE(rows) of a layer, without norm and residual; rows are BF16 [tokens, hidden] on the CPU. token_ids, [tokens]: only of
        layers that choose experts by them, or have some for images."""
        ids = [None] * len(rows) if token_ids is None else token_ids.split(TOKENS_MAX)
        parts = [self.submit(layer, *part) for part in zip(rows.split(TOKENS_MAX), ids)]
        return torch.cat([part.result() for part in parts])

    def submit(self, layer, rows, token_ids=None):
        off = protos.OFF
        header = protos.ForwardHeader(
            sequences=1,
            length=rows.shape[0],
            hidden=rows.shape[1],
            dtype=protos.BF16,
            first_layer=layer,
            last_layer=layer,
            options=protos.ForwardOptions(norm=off, residual=off, feedback=off),
        )
        batch = Batch(rows)
        with self.lock:
            if self.error is not None:
                raise self.error
            self.number += 1
            self.batches[self.number] = batch
            message = protos.SessionBatch(number=self.number, header=header, rows=to_bytes(rows))
            if token_ids is not None:
                message.token_ids = to_bytes(token_ids.to("cpu", torch.int32))
            self.requests.put(protos.SessionRequest(batch=message))
        return batch

    def receive(self):
        try:
            for message in self.answers:
                if message.HasField("failure"):
                    failure = message.failure
                    batch = self.batches.pop(failure.number)
                    batch.error = RuntimeError(f"{failure.code}: {failure.message}")
                    batch.done.set()
                    continue
                answer = message.answer
                batch = self.batches[answer.number]
                rows = torch.frombuffer(bytearray(answer.rows), dtype=torch.bfloat16).view(-1, batch.output.shape[1])
                batch.output[answer.offset : answer.offset + len(rows)] = rows
                if answer.HasField("summary"):
                    del self.batches[answer.number]
                    batch.done.set()
            self.end(RuntimeError("the session is over"))
        except grpc.RpcError as error:
            self.end(error)

    def end(self, error):
        """Nothing that is under way waits for ever."""
        with self.lock:
            self.error = error
            for batch in self.batches.values():
                batch.error = error
                batch.done.set()

    def close(self):
        self.requests.put(None)
        self.channel.close()


def to_bytes(rows):
    return rows.contiguous().view(torch.uint8).numpy().tobytes()


class RemoteMoe(torch.nn.Module):
    """Stands where the MoE block of a layer was."""

    def __init__(self, cluster, layer, is_hash=False):
        super().__init__()
        self.cluster = cluster
        self.layer = layer
        self.is_hash = is_hash

    def forward(self, hidden_states, input_ids=None):
        rows = hidden_states.detach().reshape(-1, hidden_states.shape[-1]).to("cpu", torch.bfloat16)
        token_ids = input_ids.reshape(-1) if self.is_hash else None
        return self.cluster.block(self.layer, rows, token_ids).to(hidden_states).view_as(hidden_states)


def replace_moe(model, cluster):
    """Puts the cluster in the place of every block with experts, whose weights are given up. Returns the layers."""
    if model.config.model_type.startswith("ernie4_5_vl_moe"):
        # Its layers hand the types of tokens, text or image, to blocks of its own class alone: in any other they would be lost.
        raise ValueError(f"{model.config.model_type} is not supported here: use Cluster.block, with the ids of tokens")
    replaced = []
    for layer, decoder in enumerate(model.model.layers):
        if hasattr(decoder.mlp, "experts"):
            # DeepSeek-V4: the first layers choose experts by the ids of tokens.
            decoder.mlp = RemoteMoe(cluster, layer, getattr(decoder.mlp, "is_hash", False))
            replaced.append(layer)
    return replaced
