"""What keeps files whole, and reads what may be damaged; under every other room."""
