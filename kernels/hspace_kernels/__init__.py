"""hspace_kernels: the home of the GPU's fused kernels. This version has none; edits run on the CPU."""
