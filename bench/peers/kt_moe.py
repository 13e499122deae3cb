"""The experts of one MoE layer by KTransformers (kt-kernel) with one worker thread: BF16 weights, SwiGLU.

Beside that worker KTransformers keeps the thread that feeds it busy all the time, on a second core if there is one: CPU time counts both.
"""

import torch
from kt_kernel import kt_kernel_ext


class KtExperts:
    """`gate` and `up` are [experts, ffn, hidden], `down` is [experts, hidden, ffn], all BF16; they are copied."""

    def __init__(self, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, top_k: int, tokens_max: int) -> None:
        experts, ffn, hidden = gate.shape
        pool = kt_kernel_ext.WorkerPoolConfig()
        pool.subpool_count = 1
        pool.subpool_numa_map = [0]
        pool.subpool_thread_count = [1]
        self._cpu = kt_kernel_ext.CPUInfer(pool)
        self._on_gpu = torch.zeros(experts, dtype=torch.uint8)
        config = kt_kernel_ext.moe.MOEConfig(experts, top_k, hidden, ffn, self._on_gpu.data_ptr())
        config.layer_idx = 0
        config.pool = self._cpu.backend_
        config.max_len = tokens_max
        config.gate_proj, config.up_proj, config.down_proj = gate.data_ptr(), up.data_ptr(), down.data_ptr()
        # Where there is neither AMX nor AVX-512 the package has those of AVX2 alone.
        moe = kt_kernel_ext.moe
        self._moe = (moe.AMXBF16_MOE if hasattr(moe, "AMXBF16_MOE") else moe.AVX2BF16_MOE)(config)
        expert_order = torch.arange(experts, dtype=torch.int64)
        self._run(self._moe.load_weights_task(expert_order.data_ptr()))

    def _run(self, task: tuple[int, int]) -> None:
        self._cpu.submit(task)
        self._cpu.sync()

    def forward(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`x` [tokens, hidden] BF16, `experts` [tokens, top_k] int64, `weights` [tokens, top_k] float32."""
        y = torch.empty_like(x)
        tokens = torch.tensor([x.shape[0]], dtype=torch.int32)
        pointers = (tensor.data_ptr() for tensor in (experts, weights, x, y))
        self._run(self._moe.forward_task(tokens.data_ptr(), experts.shape[1], *pointers, False))
        return y
