"""Callbacks for training programs that are no `transformers.Trainer`; a file for each."""
