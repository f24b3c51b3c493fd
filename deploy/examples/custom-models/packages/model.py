"""A model with a package of its own, which the pod need not have: the one that requirements.txt asks for.

hexcomb serve --package-index https://pypi.org/simple --trusted-prefixes file:///srv/models/
hexcomb models register numerals --format python --uri /srv/models/packages
"""

import numpy as np
import roman

from runtime_adapters.custom import Model, TensorSpec


class Numerals(Model):
    inputs = (TensorSpec("number", "INT32", (-1,)),)
    outputs = (TensorSpec("numeral", "BYTES", (-1,)),)
    batch_dimension = True

    def predict(self, inputs):
        return np.array([roman.toRoman(max(1, int(number))) for number in inputs["number"]], object)
