"""kt: an offline-first toolkit that makes a language model know its subject better (KnowTuning, EMNLP 2024)."""

__version__ = "0.1.0"
