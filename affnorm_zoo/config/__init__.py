from .load import config_to_yaml as config_to_yaml
from .load import load_config as load_config
from .schema import DataConfig as DataConfig
from .schema import ModelConfig as ModelConfig
from .schema import OptimConfig as OptimConfig
from .schema import RunConfig as RunConfig
from .schema import RuntimeConfig as RuntimeConfig
from .schema import TrainConfig as TrainConfig
