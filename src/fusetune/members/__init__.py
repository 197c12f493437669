"""θ_1 … θ_k and w → θ̄(w): checkpoints that fit together, averaged, written out."""
