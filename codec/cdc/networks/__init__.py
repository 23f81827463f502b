"""Networks of CDC: transforms, and the diffusion that decodes."""
