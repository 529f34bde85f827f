"""Time networks against each other and write docs/performance.md: scripts/benchmark.py measure | report | loop."""

from affnorm_zoo.cli.benchmark import benchmark

if __name__ == "__main__":
    benchmark()
