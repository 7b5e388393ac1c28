"""The GPU's fused kernels in Triton, each with the same in PyTorch beside it.

    linear_step  the row formula of every sampler, in one pass over memory
    inject       Δh of tables and DeltaBlocks, added to h
    normal       the counter-based noise of `hspace.noise`: a part of linear_step, and a kernel of its own for tests

`python -m hspace_kernels.build` compiles what `variants` lists for the runtime, which launches it without Triton and
PyTorch (`hspace.cuda.kernels`). Each module's `launch` runs them through Triton, for tests and benchmarks.
"""
