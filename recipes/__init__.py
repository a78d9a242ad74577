"""How to train: images in, checkpoint out. Imports nothing else of this project."""
