"""Check, measure and train on a GPU with one command: scripts/gpu_evidence.py [--rehearse] | pack | adopt | list."""

from affnorm_zoo.cli.gpu_evidence import gpu_evidence

if __name__ == "__main__":
    gpu_evidence()
