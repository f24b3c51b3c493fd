"""Custom models for the tests of streams: one that gives many answers, one that keeps sequences."""

REPEATER = '''
"""Says a number as often as it is told to; fails at 13."""

import numpy as np

from runtime_adapters.custom import Model, TensorSpec


class Repeater(Model):
    inputs = (TensorSpec("number", "INT32", (1,)), TensorSpec("times", "INT32", (1,)))
    outputs = (TensorSpec("number", "INT32", (1,)), TensorSpec("nth", "INT32", (1,)))

    def predict(self, inputs):
        for nth in range(inputs["times"].item()):
            if inputs["number"].item() == 13:
                raise ValueError("no luck")
            yield {"number": inputs["number"], "nth": np.array([nth], np.int32)}
'''

ADDER = '''
"""Adds up the numbers of a sequence."""

import numpy as np

from runtime_adapters.custom import Model, TensorSpec


class Adder(Model):
    inputs = (TensorSpec("number", "INT32", (1,)),)
    outputs = (TensorSpec("sum", "INT32", (1,)),)
    sequences = True

    def load(self):
        self.sums = {}

    def predict(self, inputs):
        before = np.zeros(1, np.int32) if self.sequence.start else self.sums[self.sequence.id]
        self.sums[self.sequence.id] = before + inputs["number"]
        return self.sums.pop(self.sequence.id) if self.sequence.end else self.sums[self.sequence.id]
'''

TALKER = '''
"""Says its text word by word."""

import numpy as np

from runtime_adapters.custom import Model, TensorSpec


class Talker(Model):
    inputs = (TensorSpec("text_input", "BYTES", (1,)), TensorSpec("loud", "BOOL", (1,), optional=True))
    outputs = (TensorSpec("text_output", "BYTES", (1,)),)

    def predict(self, inputs):
        for word in inputs["text_input"].item().split():
            yield np.array([word.upper() if "loud" in inputs and inputs["loud"].item() else word], object)
'''
