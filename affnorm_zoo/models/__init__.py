from ._entrypoints import zoo_models as zoo_models
from ._weights import WEIGHTS_FOLDER as WEIGHTS_FOLDER
from ._weights import tag_args as tag_args
from .resnet import NormalizedCifarResNet as NormalizedCifarResNet
from .resnet import NormalizedResNet as NormalizedResNet
from .vision_transformer import NormalizedVisionTransformer as NormalizedVisionTransformer
