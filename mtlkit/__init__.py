"""mtlkit: fair, fast benchmarks of multi-task-learning methods for recommendation."""

__version__ = "0.1.0"
