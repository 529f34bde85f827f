from .calibrate import calibrate as calibrate
from .distribution import Distribution as Distribution
from .divergence import LayerDivergence as LayerDivergence
from .divergence import measure_divergence as measure_divergence
from .meter import DivergenceMeter as DivergenceMeter
from .recording import summed_cross_entropy as summed_cross_entropy
from .steps import StepAlignment as StepAlignment
from .steps import measure_step as measure_step
