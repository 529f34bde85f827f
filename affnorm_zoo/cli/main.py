import click

from affnorm_zoo._version import __version__
from affnorm_zoo.cli.benchmark import benchmark
from affnorm_zoo.cli.catalogue import info, list_models
from affnorm_zoo.cli.convert import convert
from affnorm_zoo.cli.demo import demo
from affnorm_zoo.cli.divergence import divergence
from affnorm_zoo.cli.evaluate import evaluate
from affnorm_zoo.cli.gpu_evidence import gpu_evidence
from affnorm_zoo.cli.hub import pull, push
from affnorm_zoo.cli.pack import pack
from affnorm_zoo.cli.train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Divergence-free normalisers for timm models: look up, convert, train, evaluate, measure, publish."""


COMMANDS = (
    list_models,
    info,
    pack,
    convert,
    train,
    evaluate,
    benchmark,
    gpu_evidence,
    divergence,
    demo,
    push,
    pull,
)
for command in COMMANDS:
    cli.add_command(command)
