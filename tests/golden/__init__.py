"""Whole tiny runs whose outcomes are pinned, so that code can move without changing them."""
