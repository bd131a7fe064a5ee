"""Imports what a data service imports, computes a little, says that it is ready."""

import numpy
import pandas
import scipy.optimize

frame = pandas.DataFrame({"x": numpy.arange(10.0)})
root = scipy.optimize.brentq(lambda x: x * x - float(frame.x.sum()), 0, 100)
print(f"ready {root:.6f}", flush=True)
