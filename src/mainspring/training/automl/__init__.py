"""One call from a dataset version to a registered model version: see :mod:`mainspring.training.automl.engine`.

``problem`` reads the rows and says what it assumed, ``families`` are the candidates, ``rungs`` tries them, ``selection``
chooses, ``registering`` evaluates and registers, ``script`` writes the winner down as code that a person may edit.
"""
