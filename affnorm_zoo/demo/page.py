"""The demo's page, in Gradio, which is imported only when the page is built."""

from importlib.resources import files
from typing import Any

from affnorm_zoo.demo.look import Subject, find_twin, look, open_picture
from affnorm_zoo.errors import UsageError
from affnorm_zoo.hub import list_pretrained

ALONE = "nothing"
TEXT = """# The affine divergence of a picture

One gradient step on a layer moves its output by ‖x‖² + 1 times the ideal step, so some positions of a picture learn
faster than others. The heat map shows this factor over its mean. In a divergence-free layer it is the same everywhere.
"""


def build_page(exports: tuple[str, ...] = ()) -> Any:
    """Build the page; ``launch()`` of the result serves it.

    Args:
        exports: models with weights besides those of the package: export folders, or places on the Hub.

    Raises:
        UsageError: Gradio is missing, or one of ``exports`` cannot be loaded.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise UsageError("the demo needs Gradio: pip install 'affnorm-zoo[demo]'") from error
    for name in exports:
        Subject.load(name)
    names = [*exports, *list_pretrained()]

    def choose(name: str) -> tuple[Any, Any]:
        layers = Subject.load(name).layers
        return gr.update(value=find_twin(name, names) or ALONE), gr.update(choices=layers, value=_middle(layers))

    def show(path: str | None, name: str, twin: str, layer: str) -> tuple[str, Any, Any, Any]:
        if path is None:
            return "Choose a picture.", None, None, None
        try:
            return "", *look(open_picture(path), [name, *([twin] if twin != ALONE else [])], layer)
        except UsageError as error:
            return f"Error: {error}", None, None, None

    first = names[0] if exports else next(name for name in names if find_twin(name, names))
    layers = Subject.load(first).layers
    with gr.Blocks(title="affnorm_zoo", analytics_enabled=False) as page:
        gr.Markdown(TEXT)
        with gr.Row():
            with gr.Column():
                model = gr.Dropdown(names, value=first, label="Model")
                twin = gr.Dropdown([ALONE, *names], value=find_twin(first, names) or ALONE, label="Compare with")
                layer = gr.Dropdown(layers, value=_middle(layers), label="Layer of the heat map")
                picture = gr.File(label="Picture", type="filepath", elem_id="picture")
                gr.Examples(_examples(), picture)
                button = gr.Button("Look", variant="primary", elem_id="look")
            with gr.Column():
                message = gr.Markdown("Choose a picture.", elem_id="message")
                classes = gr.Label(label="Classes", elem_id="classes")
                heat = gr.Image(label="Self factor over the picture", elem_id="heat", interactive=False)
                chart = gr.Image(label="All layers", elem_id="chart", interactive=False)
        model.input(choose, model, [twin, layer])
        gr.on([button.click, picture.change], show, [picture, model, twin, layer], [message, classes, heat, chart])
    return page


def _middle(layers: list[str]) -> str:
    return layers[len(layers) // 2]


def _examples() -> list[str]:
    """The photographs that come with scikit-learn; their authors and licence are in its datasets/images/README.txt."""
    folder = files("sklearn.datasets.images")
    return [str(folder / name) for name in ("flower.jpg", "china.jpg")]
