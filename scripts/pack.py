"""Decode a dataset into one file: scripts/pack.py data.path=PATH --output FILE.safetensors."""

from affnorm_zoo.cli.pack import pack

if __name__ == "__main__":
    pack()
