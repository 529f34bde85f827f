import click

from affnorm_zoo.cli.report import reported_errors
from affnorm_zoo.demo import build_page


@click.command()
@click.argument("models", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True)
def demo(models: tuple[str, ...], host: str, port: int) -> None:
    """Serve a page that classifies pictures and draws the factor of a step over them.

    MODELS are export folders or hf-hub:ORG/NAME, besides the models that come with the package. Needs the extra demo.
    """
    with reported_errors():
        page = build_page(models)
    page.launch(server_name=host, server_port=port)
