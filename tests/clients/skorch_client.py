"""scikit-learn's interface: networks built from parameters, copied and searched."""

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from toy import CONFIG, images

import resnext

torch.manual_seed(0)
x, labels = (values.numpy() for values in images())
net = NeuralNetClassifier(
    resnext.ResNeXt, module__config=CONFIG, criterion=torch.nn.CrossEntropyLoss, train_split=None,
    optimizer=torch.optim.Adam, lr=3e-3, max_epochs=12, batch_size=8, verbose=0,
)  # fmt: skip
assert net.fit(x, labels).score(x, labels) == 1
search = GridSearchCV(net, {"module__config": [CONFIG, CONFIG.replace(attention="se")]}, cv=2)
search.fit(x, labels)
assert isinstance(search.best_params_["module__config"], resnext.ResNeXtConfig)
assert net.predict_proba(x).shape == (len(labels), np.unique(labels).size)
