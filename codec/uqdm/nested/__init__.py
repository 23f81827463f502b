"""The nested quantiser: coefficients level by level, and a lossless last layer."""
