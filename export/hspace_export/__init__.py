"""hspace_export: trained PyTorch checkpoints to bundles. The one package of the three that needs PyTorch."""
