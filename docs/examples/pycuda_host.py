"""hspace inside a PyCUDA program: its arrays go in and come out without a copy, and the work is done on its stream.

    python docs/examples/pycuda_host.py bundles/avatars32 Blond_Hair

Both have to use the device's primary context, so import pycuda.autoprimaryctx and not pycuda.autoinit.
"""

from __future__ import annotations

import sys

import hspace
import numpy as np
import pycuda.autoprimaryctx  # noqa: F401
import pycuda.driver as cuda
from pycuda import gpuarray


def main(bundle: str, attribute: str) -> None:
    stream = cuda.Stream()
    editor = hspace.open(bundle, device="cuda:0", stream=stream)

    images = np.random.default_rng(0).uniform(-1, 1, (4, 3, editor.size, editor.size)).astype(np.float32)
    there = gpuarray.to_gpu_async(images, stream=stream)  # what the program has on the device already

    edited = editor.edit(there, {attribute: 0.8}, output="device")  # hspace's DeviceArray, float32 [4, 3, H, W]
    mine = gpuarray.GPUArray(edited.shape, edited.dtype, base=edited, gpudata=edited.address)  # the same memory
    assert mine.ptr == edited.address
    print(f"{editor.engine.name} on {edited}: mean {mine.get().mean():.4f}")
    editor.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
