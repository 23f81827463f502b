"""What both of UQDM's quantisers have: a default way to decode, and a bound on memory."""

MEAN = "mean"  # the decoder that every model has: what is expected, the least squared error
FLOW = "flow"  # of the paper's model: along the flow, detail for some of the PSNR
BATCH_PIXELS = 1 << 21  # of pictures worked on at once; bounds memory
