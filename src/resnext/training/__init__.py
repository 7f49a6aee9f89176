"""Training: from images to a model file with its report.

launch.py        train() and distill(): from arguments to a run, phase by phase
arguments.py     what is refused before data is opened, and what would have no effect
request.py       what a run was asked for, where it runs, and its plan: data only
given_model.py   the `model` argument of train(): a name, a config, a config file or a network
preparation.py   network, batch size and execution of a run
identity.py      what a run was started with, and its newest checkpoint, on resume
defaults.py      network and image size that follow from the images
forecast.py      how long a run will take, from timing real steps
minutes.py       network, size and epochs for a time budget
trainer.py       the loop over epochs and steps
best_model.py    the model file, written whenever an epoch is the best so far
replanning.py    epochs and threads of a run with a time budget; where its last epoch ends
teacher.py       a trained network that gives the targets: distillation
threads.py       fewer threads while other programs run, for runs with a budget
dynamics.py      what a run says about the label of each training image
step.py          one optimizer step: augmentation, forward, backward, update
frozen.py        maps of frozen stages, computed once for a few views of each image
run_state.py     settings and state of a run, and its clock
memory.py        in how many parts a batch fits into memory
divergence.py    when a loss counts as diverged, and the message about it
interrupts.py    SIGINT and SIGTERM: stop after the running step
validation.py    logits and metrics of the validation images, over all processes
probe.py         the recipe probe: only a classifier, on cached embeddings
embeddings.py    embeddings of images, computed once
logistic.py      logistic regression, with its strength by cross-validation
recipe.py        Recipe: how to train, as data
recipes.py       the named recipes, and which one fits the data
dataloader.py    order and random views of the training images
augmentation.py  augmentation of whole batches on the device
optim.py         optimizers, learning rate schedule, weight average, loss
checkpoint.py    checkpoint files: written in the background, checksummed
distributed.py   several processes, as torchrun starts them
finalize.py      calibration and report at the end of a run
indexing.py      the index of the training images, if it is cheap
metrics_log.py   metrics.jsonl and TensorBoard events
report/          the report as one HTML page
"""

from resnext.training.launch import distill, train
from resnext.training.recipe import Recipe
from resnext.training.recipes import RECIPES

__all__ = ["RECIPES", "Recipe", "distill", "train"]
