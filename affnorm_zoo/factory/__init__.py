from .bind import bind as bind
from .bind import bound_layers as bound_layers
from .bind import init_bound_weights as init_bound_weights
from .plan import Binding as Binding
from .slot import NormSlot as NormSlot
from .slot import norm_layer as norm_layer
