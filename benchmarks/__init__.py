"""Speed and quality, measured side by side; never part of the tests."""
