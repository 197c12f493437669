"""fusetune as a library: checkpoints and any function of a model in, a fused model out."""
