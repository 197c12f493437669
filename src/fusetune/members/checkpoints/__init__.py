"""What checkpoints tell by their names: steps, wrapped networks, copies of one another."""
