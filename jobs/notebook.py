# %% [markdown]
# # The stages, one by one
#
# `fraud-ray run` is these calls and what a run keeps of them. Here each value can be looked at, and a stage repeated
# with other settings. Open this file in an editor that knows `# %%` cells, or run it: `python jobs/notebook.py`.

# %%
import tempfile
from contextlib import ExitStack
from pathlib import Path

import ray

from fraud_ray.cli.display import Display
from fraud_ray.cluster import join_or_start
from fraud_ray.data.contract import validate
from fraud_ray.data.folds import plan_folds
from fraud_ray.data.prepare import prepare
from fraud_ray.data.simulate import holds_data, simulate
from fraud_ray.data.source import open_source
from fraud_ray.decision.gate import decide
from fraud_ray.model.bundle import open_graph
from fraud_ray.settings import load_settings
from fraud_ray.storage import Storage
from fraud_ray.training.assemble import assemble
from fraud_ray.training.search import search, selection_logits
from fraud_ray.training.trainer import refit

# %% [markdown]
# Settings are values. What stands here in `overrides` is what `--set` takes.

# %%
overrides = ["search.space={learning_rate: [0.002, 0.004]}", "train.epochs=4"]
settings = load_settings("configs/local.yaml", overrides).settings
storage = Storage.at(tempfile.mkdtemp())
show = Display()
session = ExitStack()
session.enter_context(join_or_start(settings.cluster))

# %% [markdown]
# Data: every partition against the contract, then the folds by time.

# %%
if settings.simulate and not holds_data(settings.data.path):
    with show.stage("simulate") as stage:
        simulate(settings.simulate, settings.data.path, stage.update)
source = open_source(settings.data)
with show.stage("validate") as stage:
    census = validate(source, settings.data, stage.update, settings.folds)
census  # noqa: B018 - a cell shows its last value

# %%
folds = plan_folds(census, settings.folds)
folds  # noqa: B018

# %%
with show.stage("prepare") as stage:
    prepared = prepare(source, folds, settings, storage, stage.update)
prepared  # noqa: B018

# %% [markdown]
# Training: hyperparameters and epochs from the selection folds, then the winner on the final one.

# %%
with show.stage("search") as stage:
    found = search(prepared.selection, settings, storage, "search", lambda trial: None, stage.update)
found  # noqa: B018

# %%
train = settings.train_with(found.best.hyperparameters)
with show.stage("refit") as stage:
    fitted = refit(prepared.final, train, found.best.best_epoch, storage, "refit", stage.update)
fitted  # noqa: B018

# %% [markdown]
# The decision: calibration and threshold from the selection holdouts, figures on the final one, and the gate.

# %%
logits = selection_logits(found, storage)
making = ray.remote(assemble).remote(
    storage, "bundle", prepared.selection, logits, prepared.final, fitted.weights, train, settings.decision, {}
)
evaluation, curves = ray.get(making)
evaluation  # noqa: B018

# %%
decision = decide(evaluation, settings.gate, champion=None)
decision  # noqa: B018

# %% [markdown]
# The model is one ONNX graph: raw columns in, probability out.

# %%
model = open_graph(storage.fetch("bundle", Path(tempfile.mkdtemp())))
model.score(prepared.final.encoder.typical_rows())

# %%
session.close()
