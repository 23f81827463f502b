"""Universal quantisation with diffusion as in the authors' paper."""
