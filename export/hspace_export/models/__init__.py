"""The networks of both papers, defined from the papers and the published weights, in two parts.

Every U-Net has `trunk(x, t[, z_sem]) → h, temb, skips` and `head(h, temb, skips, source[, z_sem]) → ε`. Attribute
names follow the official checkpoints, so that weights load without renaming.
"""
