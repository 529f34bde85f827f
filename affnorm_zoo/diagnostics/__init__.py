from .divergence import LayerDivergence as LayerDivergence
from .divergence import measure_divergence as measure_divergence
