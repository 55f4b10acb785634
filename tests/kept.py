"""Models that are made once, and engines that compile once, for the tests that train.

To compile takes most of the time of a small training. The fixture `compiled_once` lets Trainers and
the command line take from here.
"""

import numpy as np

from fmnist_keras3 import experiment
from fmnist_keras3.engines import make_engine
from fmnist_keras3.optimizers import inner_optimizer
from fmnist_keras3.settings import TrainConfig

# Settings that decide a model and its optimizer.
DECIDE = [
    *("model", "dropout", "l2", "seed", "optimizer", "lr", "weight_decay", "clip", "lr_groups"),
    "precision",
]
build = experiment.make_model


class Kept:
    """What was made and compiled."""

    def __init__(self):
        self.models, self.engines = {}, {}

    def model(self, make, *arguments):
        """Return ``make(*arguments)``; when it is asked for again, the same one as it was then."""
        key = make, *arguments
        if key not in self.models:
            model = make(*arguments)
            model.optimizer.build(model.trainable_variables)
            variables = [*model.variables, *model.optimizer.variables]
            self.models[key] = model, [(v, np.array(v.value)) for v in variables]
        model, state = self.models[key]
        for engine, began in self.engines.values():
            if engine.model is model:
                engine.import_state(began)  # averages and the like
        for variable, value in state:
            variable.assign(value)
        return model

    def build_model(self, config, image_shape, classes):
        """Stand for `experiment.make_model`."""
        alone = TrainConfig(**{name: getattr(config, name) for name in DECIDE})
        return self.model(build, alone, image_shape, classes)

    def make_engine(self, model, example=None, **options):
        """Stand for that of the Trainer."""
        if all(model is not known for known, _ in self.models.values()):
            return make_engine(model, example=example, **options)
        optimizer = inner_optimizer(model.optimizer)
        clips = optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue
        key = id(model), *clips, *options.items()
        if key not in self.engines or not self.engines[key][0].is_current():
            engine = make_engine(model, example=example, **options)
            self.engines[key] = engine, engine.export_state()
        return self.engines[key][0]


kept = Kept()
