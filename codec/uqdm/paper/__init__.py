"""The authors' universal quantisation with diffusion, as the paper has it."""
