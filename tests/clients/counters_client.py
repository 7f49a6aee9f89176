"""What counts parameters and operations agrees with `resnext.summary`."""

import torch
from fvcore.nn import FlopCountAnalysis, parameter_count
from thop import profile
from torch.utils.flop_counter import FlopCounterMode
from torchinfo import summary as torchinfo
from toy import network

from resnext.summary import summarize

model = network().eval()
x = torch.rand(1, 3, 64, 64)
ours = summarize(model.config, 64)
assert torchinfo(model, input_data=x, verbose=0).total_params == ours.parameters
assert parameter_count(model)[""] == ours.parameters
macs, parameters = profile(model, (x,), verbose=False)
assert parameters == ours.parameters
analysis = FlopCountAnalysis(model, x).unsupported_ops_warnings(False)
by_operator = analysis.by_operator()
counter = FlopCounterMode(display=False)
with counter, torch.no_grad():
    model(x)
assert by_operator["conv"] + by_operator["linear"] == ours.macs
assert counter.get_total_flops() == 2 * ours.macs
assert ours.macs <= macs < 1.1 * ours.macs  # thop counts norms and pooling too
