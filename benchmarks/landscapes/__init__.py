"""Recorded landscapes: real members' predictions, on which rules for the choice are tried."""
