from .convert import convert as convert
from .report import Conversion as Conversion
from .report import LayerReport as LayerReport
