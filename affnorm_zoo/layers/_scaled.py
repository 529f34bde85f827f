from affnorm_zoo.functional.scale import resolve_scale


class Scaled:
    """A layer's output scale ``c`` and augmented coordinate ``kappa``; see :mod:`affnorm_zoo.functional.scale`.

    They are held as text, which gives a float back exactly. If two networks of one process differ in a float attribute,
    ``torch.compile`` makes it an input of the graph and fails on it inside an autograd function. Text stays a constant.
    """

    scale: str | tuple[float, float]
    _c: str
    _kappa: str

    def _set_scale(self, scale: str | tuple[float, float], fan_in: int) -> None:
        self.scale = scale
        c, kappa = resolve_scale(scale, fan_in)
        self._c, self._kappa = repr(c), repr(kappa)

    @property
    def c(self) -> float:
        return float(self._c)

    @property
    def kappa(self) -> float:
        return float(self._kappa)
