"""Previews of a dataset over HTTP: any picture, at any number of layers, at the size asked for."""
