"""Plan, split, run and measure neural networks on small devices."""

__version__ = "0.1.0"
