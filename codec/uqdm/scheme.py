"""Constants of both of UQDM's quantisers: names of decoders, and a limit of memory."""

MEAN = "mean"  # every model has this decoder: the expected picture
FLOW = "flow"  # only the paper's models: along the flow, with more detail and a lower PSNR
BATCH_PIXELS = 1 << 21  # at once, which limits memory
