from .bind import bind as bind
from .init import LARGE_START as LARGE_START
from .init import bound_layers as bound_layers
from .init import init_bound_weights as init_bound_weights
from .plan import Binding as Binding
from .slot import NormSlot as NormSlot
from .slot import norm_layer as norm_layer
